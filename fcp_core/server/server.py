"""A server: its sockets, its services, and its life from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.pages import Site
from fcp_core.plugins.settings import ServerSettings
from fcp_core.plugins.urls import checked_url
from fcp_core.rounds.machine import Clock, SystemClock
from fcp_core.server.host_address import HostAddress
from fcp_core.server.http.admin_auth import AdminCheck
from fcp_core.server.http.frontend import Frontend
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.listeners import Listeners
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.http.prometheus import Dump
from fcp_core.server.http.tls import MemberTLS, ServerTLS
from fcp_core.server.processes.linked_media import LinkedMedia
from fcp_core.server.processes.member_links import MemberLinks
from fcp_core.server.processes.placing import Placing
from fcp_core.server.processes.process_group import ProcessGroup
from fcp_core.server.processes.processors import on_processors
from fcp_core.server.services import Services
from fcp_core.server.services.media import Media
from fcp_core.server.services.pages import PluginPages
from fcp_core.storage.contract import StorageError

logger = logging.getLogger("fcp.server")

#: Every interface of the machine.
_EVERY = ("", "0.0.0.0", "::")
#: How many polling intervals a device that waited has to hear that the server stops.
_POLLS = 1.5

#: What a server listens on when devices of the same machine reach it as "localhost".
_LOCAL = (*_EVERY, "127.0.0.1", "::1", "localhost")


class Server:
    """Serves the protocol to devices. Bound when made, running from :meth:`start` to :meth:`stop`.

    Making one touches no event loop, so that a process may fork between the two.

    :param plugins: the configuration and what it chooses.
    :param populations: those that devices may check in to; empty: those that tasks are submitted
        for.
    :param host: what to listen on; ``""`` is every interface.
    :param port: 0 takes a free one.
    :param certfile: a PEM certificate; with one the server speaks HTTPS only.
    :param keyfile: its key, if that is not in *certfile*.
    :param address_family: ``socket.AF_INET`` or ``AF_INET6``; None: both.
    :param external_url: where devices reach the server, if that is not where it listens: behind a
        proxy, or by a name of its own.
    :param reuse_port: let other servers listen on the same port.
    :param processes: how many processes serve as one: this one, which also decides, and others
        that receive and fold. They start with the server and end with it.
    :param pin_processes: give each of several processes processors of its own, if there are enough.
    :param member_address: host:port where other members reach it that share its storage; None: on a
        port of its own where devices are served.
    :param clock: tells the time; None is the machine's.
    :param rng: makes choices; None is seeded by the machine.
    :raises UsageError: if it cannot listen, the certificate cannot be used, or a plugin is an
        object of this program that other processes would need.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        populations: Collection[str] = (),
        host: str = "localhost",
        port: int = 0,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        address_family: socket.AddressFamily | None = None,
        external_url: str | None = None,
        reuse_port: bool = False,
        processes: int = 1,
        pin_processes: bool = True,
        member_address: str | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        settings = ServerSettings.from_config(plugins.config)
        self._tls = tls = _tls(plugins.config, settings, certfile, keyfile)
        self._member_tls = MemberTLS.from_config(plugins.config)
        self._limits = Limits.from_config(plugins.config)
        admin_check = AdminCheck.from_config(plugins.config)
        url = None if external_url is None else checked_url(external_url)
        self._state, self._cleanup, self._placing = "new", AsyncExitStack(), Placing()
        self._group = group = ProcessGroup(plugins, processes, pin=pin_processes)
        storage = plugins.make_storage()
        # Members pass on what is for another one; servers with other storages refuse it.
        sharing = {"reuse_port": reuse_port or processes > 1}
        sharing["alone"] = not (reuse_port or storage.shared)
        listeners = Listeners(settings, host, port, address_family, **sharing)
        #: The port it listens on.
        self.port = listeners.port
        #: Where devices reach it, with a slash at the end.
        self.url = url or _url(listeners.host, self.port, secure=tls is not None)
        #: Where ``/metrics`` is; 0 if there is none.
        self.metrics_port = listeners.metrics_port
        self._plugins, clock = plugins, SystemClock() if clock is None else clock
        with listeners.closed_on_error():
            if storage.shared:
                group.share(plugins)
                listeners.listen_for_members(member_address, secure=self._member_tls is not None)
            self._workers = group.make_workers(listeners, certfile, keyfile, self.url)
            self._metrics = metrics = self._make_metrics(settings, clock)
            #: What is behind the calls; ``services.tasks`` is where programs put tasks.
            self.services = Services(
                plugins,
                storage=storage,
                member_url=listeners.member_url,
                engine=group.engine,
                place=self._placing.place if storage.shared else None,
                populations=populations or None,
                **_addresses(self.url, listeners, secure=tls is not None, known=url is not None),
                clock=clock,
                rng=rng,
                observe=None if metrics is None else metrics.event,
            )
            self._links = self._make_links(known=url is not None or listeners.host not in _EVERY)
            self._frontend = self._make_frontend(listeners, admin_check)
            self._wire_admin(admin_check)

    def _make_links(self, *, known: bool) -> MemberLinks | None:
        """Make the links to other members, if there may be some.

        :param known: whether devices reach this server at its URL.
        """
        services, members, engine = self.services, self.services.members, self._group.engine
        if members is None:
            return None
        assert engine is not None  # made for whoever may be a member
        # The processes of a group pass uploads on, so that no device is to be sent to one.
        address = self.url if known and self._workers is None else ""
        media = cast(Media, services.media)
        what = (engine, services.store, media, address, self._placing, media.freed)
        links = MemberLinks(members, *what)
        services.media = LinkedMedia(media, members, links)
        return links

    def _make_metrics(self, settings: ServerSettings, clock: Clock) -> ServerMetrics | None:
        """Make what measures, if metrics are served, or there are pages that may show them."""
        if not settings.metrics and not self._plugins.config.get("pages"):
            return None
        others = None if self._workers is None else self._workers.measure
        return ServerMetrics(clock, lambda: self.services.counts(), others)

    def _make_frontend(self, listeners: Listeners, admin_check: AdminCheck | None) -> Frontend:
        plugins, tls = self._plugins, self._tls
        return Frontend(
            self.services,
            plugins.authenticate if plugins.authenticates else None,
            self._limits,
            listeners.sockets,
            None if tls is None else tls.context,
            metrics=self._metrics,
            metrics_apart=self.metrics_port == 0,
            metrics_sockets=listeners.metrics_sockets,
            admin_check=admin_check,
            threads=self._group.threads,
            members=self.services.members,
            member_sockets=listeners.member_sockets,
            member_tls=self._member_tls,
            pages=plugins.config.get("pages"),
            url=self.url,
            links=self._links,
            folder=self.services.store.folder,
        )

    def _wire_admin(self, check: AdminCheck | None) -> None:
        """Have all members answer as one; make the pages of plugins that are served."""
        plugins, shared, metrics = self._plugins, self._frontend.shared_admin, self._metrics
        self.services.shared_admin = shared or self.services.admin
        if check is None:
            return

        async def measures(names: Collection[str]) -> Sequence[Dump]:
            if metrics is None:
                return []
            return [
                metrics.dump(names),
                *([] if metrics.others is None else await metrics.others()),
            ]

        async def others(uri: str) -> Sequence[bytes]:
            return [] if shared is None else await shared.ask_pages(uri)

        site = Site(
            admin=self.services.shared_admin,
            config=plugins.config,
            plugins=plugins.plugins,
            offers=plugins.offers,
            url=self.services.url,
            knows=check.knows,
            key=check.key,
            others=others,
            metrics=measures,
        )
        pages = {name: plugins.pages[name].make(site) for name in plugins.config.get("pages")}
        self.services.pages = PluginPages(pages)

    @classmethod
    def from_config(cls, plugins: Plugins) -> Server:
        """Make the server that ``[fcp:server]`` describes.

        :raises UsageError: as the constructor does.
        """
        options = dict(plugins.config.section("server"))
        host = options.pop("host")
        return cls(plugins, host="" if host == "*" else host, **options)

    async def start(self) -> None:
        """Start the services, then accept requests.

        :raises UsageError: if a plugin or the storage cannot start; nothing is left running then.
        :raises RuntimeError: if it was started before.
        """
        if self._state != "new":
            raise RuntimeError(f"a server starts once; this one is {self._state}")
        self._state = "started"
        try:
            await self._plugins.startup()
            self._cleanup.push_async_callback(self._plugins.shutdown)
            if self._workers is not None:
                self._cleanup.push_async_callback(self._workers.stop)
            await self.services.start()
            self._cleanup.push_async_callback(self.services.stop)
            if self._workers is not None:
                self._cleanup.enter_context(on_processors(self._group.processors(0)))
                await self._workers.start(self.services, self._metrics)
            self._frontend.start()
            if self._links is not None:
                self._links.start(self._frontend.room, self._frontend.dial, self._hang_up)
        except BaseException as error:
            await self.stop()
            if isinstance(error, StorageError):
                raise UsageError(
                    f"the storage does not answer, so nothing can be served: {error.message}; "
                    "start again once it does."
                ) from None
            raise
        logger.info(
            "listening on port %d, for devices at %s, admin API %s",
            self.port,
            self.url,
            "on" if self._frontend.has_admin else "off (there is no token)",
        )

    async def stop(self) -> None:
        """Stop accepting, let requests end within ``drain_timeout``, stop the services.

        Devices that wait for a task are rejected, and hear of it before. May be repeated, and
        called without a start: it then gives the sockets back.
        """
        if self._state == "stopped":
            return
        self._state = "stopped"
        async with self._cleanup:
            # Devices that are kept waiting would make the stop as long as they may wait; the
            # published client takes a refused connection for a failure, and an answer for one.
            waited = self.services.eligibility_eval_tasks.turn_away()
            if self._links is not None:
                self._links.announce()
            await asyncio.gather(
                self._frontend.announce_stop(waited * _POLLS), self.services.give_back()
            )
            if self._workers is None:
                await self._frontend.stop()
            else:
                await asyncio.gather(self._workers.drain(), self._frontend.stop())
            if self._links is not None:
                await self._links.leave(self._limits.drain_timeout)

    def _hang_up(self, url: str) -> None:
        """Break the calls of all processes to a member that says nothing any more."""
        self._frontend.hang_up(url)
        if self._workers is not None:
            self._workers.tell("hang_up", url)

    def reload(self) -> None:
        """Read certificates, their keys and the keys of tokens again, for what comes from now on.

        What cannot be used is logged, and what there was stays.
        """
        if self._workers is not None:
            self._workers.tell("reload")
        for what, load in (
            ("the certificate", None if self._tls is None else self._tls.reload),
            ("members' certificate", None if self._member_tls is None else self._member_tls.reload),
            ("the keys that sign tokens", self.services.reload_keys),
        ):
            try:
                if load is not None:
                    load()
                    logger.info("%s: read again", what)
            except UsageError as error:
                logger.error("%s: not read again, the old one stays: %s", what, error)

    @property
    def worker_pids(self) -> list[int]:
        """The ids of the other processes that serve at the moment."""
        return [] if self._workers is None else self._workers.pids


def _tls(
    config: Config,
    settings: ServerSettings,
    certfile: str | os.PathLike[str] | None,
    keyfile: str | os.PathLike[str] | None,
) -> ServerTLS | None:
    """Return what HTTPS is served with, or None for plain HTTP."""
    if certfile is not None:
        return ServerTLS(
            certfile, keyfile, settings.client_ca, required=settings.certificate_required
        )
    if keyfile is not None:
        raise UsageError(f"the TLS key file {os.fspath(keyfile)} needs a certificate file too.")
    if settings.client_ca is not None:
        raise UsageError(
            f"client_ca (from {config.origin('', 'client_ca')}) needs a server that speaks HTTPS: "
            "give it a certificate file."
        )
    return None


def _addresses(url: str, listeners: Listeners, *, secure: bool, known: bool) -> dict[str, Any]:
    """Return where devices reach it, as arguments of the services."""
    if known or listeners.host not in _EVERY:
        return {"base_url": url}
    reached = HostAddress(listeners.port, secure=secure)
    return {"base_url": reached.base_url, "data_url": reached.data_url}


def _url(host: str, port: int, *, secure: bool) -> str:
    if host in _EVERY:
        logger.warning(
            "devices are sent on to the address at which they reach this server, which is not "
            "known here; set external_url if it is another, or for clients before August 2024"
        )
    name = "localhost" if host in _LOCAL and _by_name(host) else host
    name = f"[{name}]" if ":" in name else name
    return checked_url(f"{'https' if secure else 'http'}://{name}:{port}/")


def _by_name(host: str) -> bool:
    """Whether "localhost" leads there: of ::1 not every machine knows that."""
    if host != "::1":
        return True
    try:
        return bool(socket.getaddrinfo("localhost", None, socket.AF_INET6))
    except OSError:
        return False
