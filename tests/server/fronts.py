"""A front with services of a test's own, on a real socket; clients that speak bytes."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from dataclasses import dataclass, field

from fcp_core.protocol.protos import google_rpc_status_pb2
from fcp_core.protocol.routes import method_name
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Signal
from fcp_core.server.http.frontend import Frontend
from fcp_core.server.http.listeners import bind
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.published import Download

WAIT = 30.0  # how long anything may take before the test fails


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def error(self):
        status = google_rpc_status_pb2.Status.FromString(self.body)
        return Code(status.code), status.message


class Connection:
    """One TCP connection: send bytes, read answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("localhost", port), timeout=WAIT)

    def send(self, *pieces: bytes) -> Connection:
        for piece in pieces:
            self.socket.sendall(piece)
        return self

    def reply(self, method: str = "POST") -> Reply:
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        return Reply(response.status, response.headers, response.read())

    def is_closed(self) -> bool:
        """Wait until the other side closes; False if it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()


def head(path: str, method: str = "POST", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Media:
    """Knows the upload names it was given; each is good for one complete upload."""

    held = storing = 0

    def behind(self, behind):
        pass

    def __init__(self) -> None:
        self.freed = Signal()
        self.names = {"known/upload"}
        self.begun: set[str] = set()
        self.wanted = Wanted.FOR_MEMORY
        self.files: dict[str, Download] = {}
        self.received: dict[str, bytes] = {}
        self.abandoned = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    async def begin_upload(self, name, sender=None):
        if name in self.received:
            return False
        if name not in self.names or name in self.begun:
            raise StatusError(Code.UNAUTHENTICATED, f"no such upload: {name}")
        self.begun.add(name)
        self.started.release()
        return self.wanted

    async def finish_upload(self, name, body, sender=None):
        self.names.remove(name)
        self.received[name] = bytes(body)

    async def abandon_upload(self, name, sender=None):
        self.begun.discard(name)
        self.abandoned.release()

    async def download(self, name):
        if name not in self.files:
            raise StatusError(Code.NOT_FOUND, "nothing here")
        return self.files[name]


@dataclass
class Services:
    """Services that answer what the test says; a name that is not set is not offered."""

    media: Media = field(default_factory=Media)

    def method(self, route):
        """Return what serves a call: a method of the attribute that is named after its service."""
        service = getattr(self, method_name(route.service.rpartition(".")[2]), None)
        return getattr(service, method_name(route.method), None)

    async def problem(self):
        """Nothing is wrong."""
        return ""

    def turn_away(self, route, variables):
        """Turn nobody away: an error is answered as it is."""
        return None


class Front:
    """A front on its own thread."""

    def __init__(self, services, authenticate, limits, tls=None, **more) -> None:
        self.services = services
        sockets = bind("localhost", 0)
        self.port = sockets[0].getsockname()[1]
        self.frontend = Frontend(services, authenticate, limits, sockets, tls, **more)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.frontend.start()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT)

    def connect(self) -> Connection:
        return Connection(self.port)

    def ask(self, *pieces: bytes, method: str = "POST") -> Reply:
        with self.connect() as connection:
            return connection.send(*pieces).reply(method)

    def stop(self) -> None:
        self.run(self.frontend.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT)
        self.loop.close()
