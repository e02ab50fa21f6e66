"""The server that a program's rounds run on: one of its own, or one elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.server.server import Server
from fcp_platform.runners import LocalRunner, RemoteRunner, TaskRunner


@dataclass(frozen=True)
class LocalServer:
    """A server in the program's process. It serves between a context's ``__enter__`` and its end.

    :param host: what it listens on; ``""`` is every interface.
    :param port: 0 takes a free one; see ``FederatedContext.server_port``.
    :param certfile: a PEM certificate; with one the server speaks HTTPS only.
    :param keyfile: its key, if that is not in *certfile*.
    :param address_family: ``socket.AF_INET`` or ``AF_INET6``; None: both.
    :param external_url: where devices reach the server, if not where it listens.
    :param processes: how many processes serve: this one, and others that receive and accumulate.
    :param config_file: its configuration file; None: what the working folder has.
    :param config: configuration values that win over the file, by dotted name, such as
        ``{"aggregator.federated_secure_sum.allow_unprotected": True}``.
    :param plugins: further plugin objects, such as an observer of events.
    """

    host: str = "localhost"
    port: int = 0
    certfile: str | os.PathLike[str] | None = None
    keyfile: str | os.PathLike[str] | None = None
    address_family: socket.AddressFamily | None = None
    external_url: str | None = None
    processes: int = 1
    config_file: str | os.PathLike[str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    plugins: Iterable[object] = ()

    def runner(self, population: str) -> TaskRunner:
        """Bind the server's socket; return what runs tasks on it.

        :raises UsageError: if the configuration is invalid, or the server cannot listen.
        """
        loaded = Plugins.load(
            config_file=self.config_file,
            # A program keeps its state itself, and its rounds end with it.
            overrides={"storage": "memory", **self.config},
            overrides_origin="LocalServer(config=...)",
            extra=self.plugins,
        )
        server = Server(
            loaded,
            populations=[population],
            host=self.host,
            port=self.port,
            certfile=self.certfile,
            keyfile=self.keyfile,
            address_family=self.address_family,
            external_url=self.external_url,
            processes=self.processes,
        )
        return LocalRunner(server)


@dataclass(frozen=True)
class RemoteServer:
    """A server elsewhere, through its admin API.

    :param url: its address, such as ``https://fcp.example.org/``.
    :param token: its admin token.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param certfile: a PEM certificate that opens the admin API, beside the token or instead of it.
    :param keyfile: its key, if that is in a file of its own.
    :param program: a name by which a program that is restarted finds the rounds that it left on the
        server; None: it leaves none behind.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: str | os.PathLike[str] | None = None
    certfile: str | os.PathLike[str] | None = None
    keyfile: str | os.PathLike[str] | None = None
    program: str | None = None

    def runner(self, population: str) -> TaskRunner:
        """Return what runs tasks on the server.

        :raises UsageError: if there is neither token nor certificate, or a file cannot be used.
        """
        if self.token is None and self.certfile is None:
            raise UsageError(
                f"the server {self.url} asks for its admin token, RemoteServer(token=...), or for "
                "a client certificate, RemoteServer(certfile=...)"
            )
        return RemoteRunner(
            self.url,
            self.token,
            ca_file=self.ca_file,
            certfile=self.certfile,
            keyfile=self.keyfile,
            program=self.program,
        )
