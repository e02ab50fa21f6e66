"""A network of this host: namespaces on a bridge, like hosts. It takes root, and ``ip``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import threading


def ip(*arguments: str) -> None:
    """Run ``ip`` of iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A bridge of this host with namespaces on it; the database has an address of its own."""

    def __init__(self, socket_path: str) -> None:
        self.names: list[str] = []
        self._socket = socket_path
        # One that nobody on this machine uses; its name is taken with it.
        for number in itertools.chain(range(os.getpid() % 250, 250), range(250)):
            self._net, self._tag = f"10.231.{number}", f"fcp231{number:03}"
            # Without an address of its own it has that of one of its ends, and another one when one
            # is added: whoever asked for it before is cut off then.
            link = ("link", "add", self._tag, "address", "02:00:00:00:00:02", "type", "bridge")
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*link)
                break
        else:
            ip(*link)
        # The first is where devices come from, the second the database's.
        for address in (f"{self._net}.1/24", f"{self._net}.2/24"):
            ip("addr", "add", address, "dev", self._tag)
        ip("link", "set", self._tag, "up")
        self._loop = asyncio.new_event_loop()
        self._relay = self._loop.run_until_complete(
            asyncio.start_server(self._connect, f"{self._net}.2", 0)
        )
        self.port = self._relay.sockets[0].getsockname()[1]
        self.url = f"postgresql://fcp@{self._net}.2:{self.port}/postgres?sslmode=disable"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self) -> tuple[str, str]:
        """Make a namespace; return its name and its address."""
        number = len(self.names)
        name, inside, outside = (f"{self._tag}{kind}{number}" for kind in "xyz")
        address = f"{self._net}.{10 + number}"
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", name)
        ip("link", "set", outside, "master", self._tag)
        ip("link", "set", outside, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
        ip("-n", name, "link", "set", inside, "up")
        ip("-n", name, "link", "set", "lo", "up")
        return name, address

    def cut(self, name: str) -> None:
        """Let what a namespace sends to the database get lost on the way, without a word."""
        inside = name.replace("x", "y")
        nowhere = ("lladdr", "02:00:00:00:00:01", "dev", inside, "nud", "permanent")
        ip("-n", name, "neigh", "replace", f"{self._net}.2", *nowhere)

    def mend(self, name: str) -> None:
        """Let it come through again."""
        inside = name.replace("x", "y")
        ip("-n", name, "neigh", "del", f"{self._net}.2", "dev", inside)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there = await asyncio.open_unix_connection(self._socket)
            ways = [
                asyncio.create_task(pump(*way)) for way in ((reader, there[1]), (there[0], writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                there[1].close()
                writer.close()

    def close(self) -> None:
        """Take it all away."""

        async def close() -> None:
            self._relay.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for name in self.names:
            ip("link", "del", name.replace("x", "z"))  # the namespace would let go of it later
            ip("netns", "del", name)
        ip("link", "del", self._tag)


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass on what comes, until one end is closed."""
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
