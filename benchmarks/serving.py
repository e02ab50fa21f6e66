"""The servers of benchmarks, in processes of their own: ours with a task, and bare Tornado.

Both take contributions of floats and add them up. A server says where it is and which processes it
has, and ends with its standard input. Run by :func:`running`, with what it is to be as JSON.
"""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcp_core.bench.task import BenchTask
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server as FCPServer
from fcp_core.server.own_process import serve_alone


@dataclass(frozen=True)
class Server:
    """A server in processes of its own, the first of which is the one that decides."""

    url: str
    pids: Sequence[int]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.pids[0]

    def cpu(self) -> float:
        """Return its CPU time so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(
    kind: str,
    elements: int,
    *,
    options: Mapping[str, object] | None = None,
    durability: str | None = None,
    processes: int = 1,
    pinned: bool = False,
    port: int = 0,
    path: str | Path = "",
) -> Iterator[Server]:
    """Run a server.

    :param kind: ``fcp`` or ``bare``.
    :param elements: how many floats are in a contribution.
    :param options: of the configuration, by name.
    :param pinned: whether it may use one processor only.
    :param path: where plugins are looked for, too.
    """
    given = {
        "elements": elements,
        "options": dict(options or {}),
        "durability": durability,
        "processes": processes,
        "pinned": pinned,
        "port": port,
    }
    with subprocess.Popen(
        [sys.executable, __file__, kind, json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(*json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()


def task(elements: int, durability: str | None) -> TaskSpec:
    """Return a task that goes on as long as devices come."""
    spec = BenchTask(elements).spec("p", "sum", 10**6, 3600.0)
    return spec.replace(durability=durability, over_selection=None)


async def serve_fcp(given: Mapping[str, Any]) -> None:
    """Serve a task that sums floats (population p), and one that is full (q)."""
    plugins = Plugins.load(environ={}, overrides=given["options"])
    server = FCPServer(plugins, host="127.0.0.1", processes=given["processes"])
    await server.start()
    await server.services.tasks.submit(task(given["elements"], given["durability"]))
    full = BenchTask().spec("q", "full", 1, 3600.0)
    await server.services.tasks.submit(full.replace(durability=given["durability"]))
    server.services.add_population("nothing")
    serve_alone()  # as fcp serve does
    await _until_the_end(server.url, [os.getpid(), *server.worker_pids])
    await server.stop()


async def serve_bare(given: Mapping[str, Any]) -> None:
    """Serve the least that Tornado can do for the same bytes; several share a port."""
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from tornado.web import Application, RequestHandler, stream_request_body

    elements, others = given["elements"], given["processes"] - 1
    decompress: Any = gzip.decompress
    with suppress(ImportError):
        decompress = importlib.import_module("isal.igzip").decompress
    total = np.zeros(elements, np.float32)

    @stream_request_body
    class Upload(RequestHandler):
        def prepare(self) -> None:
            self.body = np.empty(int(self.request.headers["Content-Length"]), np.uint8).data
            self.at = 0

        def data_received(self, chunk: bytes) -> None:
            self.body[self.at : self.at + len(chunk)] = chunk
            self.at += len(chunk)

        def post(self) -> None:
            body: Any = self.body
            if self.request.headers.get("Content-Encoding") == "gzip":
                body = decompress(body)
            np.add(total, np.frombuffer(body, np.float32, elements), out=total)

    class Empty(RequestHandler):
        def get(self) -> None:
            pass

        def post(self) -> None:
            request = eligibility.EligibilityEvalTaskRequest.FromString(self.request.body)
            del request
            self.finish(eligibility.EligibilityEvalTaskResponse().SerializeToString())

    shared = others > 0 or given["port"] > 0
    sockets = bind_sockets(given["port"], "127.0.0.1", reuse_port=shared)
    handlers = [("/upload", Upload), (".*", Empty)]
    HTTPServer(Application(handlers, log_function=lambda handler: None)).add_sockets(sockets)
    port = sockets[0].getsockname()[1]
    with ExitStack() as stack:
        more = [
            stack.enter_context(running("bare", elements, port=port)).pid for _ in range(others)
        ]
        await _until_the_end(f"http://127.0.0.1:{port}/", [os.getpid(), *more])


async def _until_the_end(url: str, pids: list[int]) -> None:
    print(json.dumps([url, pids]), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Serve."""
    kind, given = sys.argv[1], json.loads(sys.argv[2])
    if given["pinned"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    asyncio.run({"fcp": serve_fcp, "bare": serve_bare}[kind](given))


if __name__ == "__main__":
    main()
