"""The listening sockets of a server."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator

from fcp_core.errors import ListenError, UsageError
from fcp_core.plugins.settings import ServerSettings
from fcp_core.protocol.urls import without_brackets

#: How often a free port is looked for that is free on every address of the host.
_PORT_TRIES = 10
#: How long the processes of a server that was killed may take to end, in seconds.
_ENDING = 10.0


class Listeners:
    """The sockets of one server, bound when made.

    :param settings: say whether metrics are served, and where.
    :param host: as for :func:`bind`, as are *port*, *reuse_port* and *alone*.
    :param family: None: any.
    :raises UsageError: if it cannot listen; nothing is left open then.
    """

    def __init__(
        self,
        settings: ServerSettings,
        host: str,
        port: int,
        family: socket.AddressFamily | None,
        *,
        reuse_port: bool,
        alone: bool,
    ) -> None:
        self.host = without_brackets(host)
        self.family = family or socket.AF_UNSPEC
        #: Where devices are served, and the admin API.
        self.sockets = bind(self.host, port, family=self.family, reuse_port=reuse_port, alone=alone)
        #: Where there is nothing but metrics; none: these are served with the rest, if at all.
        self.metrics_sockets: list[socket.socket] = []
        #: Where other members call, and how they reach it; none: there can be no others.
        self.member_sockets: list[socket.socket] = []
        self.member_url = ""
        #: The port that devices are served on.
        self.port: int = self.sockets[0].getsockname()[1]
        #: The port that metrics are served on; 0 if they are not.
        self.metrics_port = self.port if settings.metrics else 0
        if settings.metrics and settings.metrics_address is not None:
            with self.closed_on_error():
                self.metrics_sockets = bind(*settings.metrics_address)
            self.metrics_port = self.metrics_sockets[0].getsockname()[1]

    def listen_for_members(self, address: str | None, *, secure: bool) -> None:
        """Listen where other members call this one: nobody else is to reach it.

        :param address: host:port; None: where devices are served, on a port of its own.
        :param secure: whether it speaks HTTPS there.
        :raises UsageError: if it cannot listen, or the address is invalid.
        """
        host, port = self.host, 0
        if address is not None:
            host, colon, text = address.rpartition(":")
            if not colon or not (text.isascii() and text.isdigit()) or int(text) > 65535:
                raise UsageError(f"member_address {address!r} must be like 10.0.0.7:8081.")
            host, port = without_brackets(host), int(text)
        everywhere = host in ("", "*")
        self.member_sockets = bind("" if everywhere else host, port)
        name = socket.gethostname() if everywhere else host
        name = f"[{name}]" if ":" in name else name
        port = self.member_sockets[0].getsockname()[1]
        self.member_url = f"{'https' if secure else 'http'}://{name}:{port}/"

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close all sockets if the block raises."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            yield
            undo.pop_all()

    def close(self) -> None:
        """Close all sockets."""
        for listener in (*self.sockets, *self.metrics_sockets, *self.member_sockets):
            listener.close()


def bind(
    host: str,
    port: int,
    *,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    reuse_port: bool = False,
    alone: bool = False,
) -> list[socket.socket]:
    """Return listening sockets for every address of *host*, all on one port.

    :param host: a name or an address; ``""`` is every interface.
    :param port: 0 takes one that is free.
    :param reuse_port: let other processes listen on the same port.
    :param alone: none does so yet: it would be another server's, which knows nothing of this one.
    :raises UsageError: if that cannot be; the message says why. It is a :class:`ListenError`, and
        so an ``OSError``, if the system refuses.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"the port must be between 0 and 65535, not {port}.")
    for left in reversed(range(_PORT_TRIES)):
        try:
            if reuse_port and alone and port:
                _wait_until_free(host, port, family)
            return _bind(host, port, family, reuse_port)
        except OSError as error:
            # A port that is free on the first address may be taken on the second.
            if port == 0 and left and error.errno == errno.EADDRINUSE:
                continue
            taken = "; stop what does, or take another port: 0 is a free one"
            raise ListenError(
                f"the server cannot listen on {host or 'every interface'}, port {port}: "
                f"{error.strerror or error}{taken * (error.errno == errno.EADDRINUSE)}.",
                error.errno,
            ) from None
    raise AssertionError("the last try returns or raises")


def _wait_until_free(host: str, port: int, family: socket.AddressFamily) -> None:
    """Wait a moment for others to end; raises OSError if they do not."""
    give_up = time.monotonic() + _ENDING
    while True:
        try:
            found = _bind(host, port, family, reuse_port=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up:
                raise
            time.sleep(0.05)
            continue
        for listener in found:
            listener.close()
        return


def _bind(
    host: str, port: int, family: socket.AddressFamily, reuse_port: bool
) -> list[socket.socket]:
    found = socket.getaddrinfo(
        host or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with contextlib.ExitStack() as undo:
        sockets: list[socket.socket] = []
        missing: OSError | None = None
        for kind, _, _, _, address in dict.fromkeys(found):
            try:
                listener = undo.enter_context(socket.socket(kind, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if kind == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address[0], port, *address[2:]))
            except OSError as error:
                # "localhost" may have an IPv6 address on a machine that has no IPv6.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing = error
                continue
            listener.setblocking(False)
            listener.listen(socket.SOMAXCONN)
            port = listener.getsockname()[1]
            sockets.append(listener)
        if not sockets:
            raise missing or OSError("it has no address")
        undo.pop_all()
        return sockets
