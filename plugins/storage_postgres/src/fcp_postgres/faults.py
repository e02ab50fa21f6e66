"""What the driver raises, in words: whether to try again, and what an operator can do."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.contract import ChangedError, StorageError

#: The connection is gone, or no answer came: the same may work on another connection.
LOST = (OSError, asyncio.TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)

#: Beginnings of the codes of errors after which a new connection may work: connection exceptions,
#: a server that stops, starts or has no room for one more.
_GONE = ("08", "57P", "53300")
#: Those that end a connection, and would end the next one too.
_LOCKED_OUT = ("28", "3D", "42")
#: Serialization failure, deadlock, a statement that was prepared before a change of the tables.
_CONFLICTS = ("40001", "40P01", "0A000")

_WORDS: Mapping[str, str] = {
    "28P01": "the password of the user {user!r} is wrong, or none was given",
    "28000": "the server does not let the user {user!r} in: there is no such user, or "
    "pg_hba.conf does not allow it from here",
    "3D000": "there is no database {database!r}; make it with 'createdb -O {user} {database}'",
    "42501": "the user {user!r} lacks rights: it must own the schema, or be allowed to create it "
    "in the database (GRANT CREATE ON DATABASE {database} TO {user})",
    "25006": "it only reads: it is a standby, or default_transaction_read_only is on; name the "
    "primary, or several hosts and target_session_attrs=read-write",
    "53300": "it has no connection left: raise max_connections there, or lower connections here",
    "53100": "its disk is full",
    "57P03": "it is starting or stopping",
    "57P01": "it is being stopped",
}


class Fault(BaseException):
    """A fault of the database in the middle of a body, which must not take it for its own.

    :param error: what the driver raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Place:
    """Which database a URL names, in words that have no secret.

    :param url: as the driver takes it.
    :raises UsageError: if it is no URL of a database.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            query = parse_qs(parts.query)
        except ValueError:
            parts, query = urlsplit(""), {}
        if not url.startswith(("postgresql://", "postgres://")) or not parts.scheme:
            # The text may hold a password, so it is not shown.
            raise UsageError(
                "the url of the storage postgres is not of the form "
                "postgresql://USER@HOST:PORT/DATABASE."
            )
        if "@" not in parts.netloc and "@" in parts.path + parts.query.partition("=")[0] + (
            parts.fragment
        ):
            raise UsageError(
                "the url of the storage postgres has a character in its user or password that ends "
                "them: write %2F for /, %3F for ? and %23 for #."
            )
        named = unquote(parts.netloc.rpartition("@")[2])
        hosts = named or ",".join(query.get("host", []))
        asked = ",".join(query.get("port", []))
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
        for port in filter(None, ports + asked.split(",")):
            if not (port.isdecimal() and 0 < int(port) < 1 << 16):
                # It may be the end of a password.
                raise UsageError(
                    "the url of the storage postgres has a port that is no number from 1 to 65535."
                )
        #: What to tell the driver, beside the URL, of each host; one entry if there is one host.
        self.hosts = _hosts(hosts, "" if named else asked)
        user = unquote(parts.netloc.rpartition("@")[0].partition(":")[0])
        self.user = user or "".join(query.get("user", [])) or "(the system's)"
        self.database = unquote(parts.path.strip("/")) or "".join(query.get("dbname", []))
        self.database = self.database or self.user
        self.name = f"PostgreSQL at {hosts or 'this host'}, database {self.database!r}"

    def explain(self, error: BaseException) -> str:
        """Return what is wrong, as a sentence without its end."""
        # A hint of the driver has a line of its own, and each of them its full stop.
        reason = " ".join(self._reason(error).split()).rstrip(".")
        return f"the storage ({self.name}) cannot be used: {reason}"

    def _reason(self, error: BaseException) -> str:
        words = _WORDS.get(sqlstate(error))
        if words is not None:
            return words.format(user=self.user, database=self.database) + f" ({error})"
        if isinstance(error, socket.gaierror):
            return f"its host is not known ({error.strerror})"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed: {error.reason or error}"
        if isinstance(error, asyncio.TimeoutError):
            return "no answer came in time"
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return "nobody listens there; see whether the server is running"
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            return f"no host is what target_session_attrs asks for ({error})"
        return str(error) or type(error).__name__

    def storage_error(self, error: BaseException) -> Exception:
        """Return what a transaction raises."""
        if sqlstate(error) == "23505" and getattr(error, "table_name", "") != "parts":
            return ChangedError(str(getattr(error, "table_name", "")), "")
        if sqlstate(error)[:2] in ("22", "54") or isinstance(error, asyncpg.DataError):
            return StatusError(
                Code.RESOURCE_EXHAUSTED, f"too large for {self.name}: {error}", http=None
            )
        return StorageError(self.explain(error))


def _hosts(names: str, ports: str) -> list[dict[str, str | int]]:
    found: list[dict[str, str | int]] = []
    for name in names.split(","):
        at = re.fullmatch(r"\[?(.*?)\]?(?::(\d+))?", name) if name[:1] != "/" else None
        found.append({"host": at[1] if at else name})
        if at and at[2]:
            found[-1]["port"] = int(at[2])
    if ports:
        if ports.count(",") != names.count(","):
            return [{}]  # The driver says what is wrong with it.
        for host, port in zip(found, ports.split(","), strict=True):
            host["port"] = int(port)
    return found if len(found) > 1 else [{}]


def sqlstate(error: BaseException) -> str:
    """Return the code that the server gave an error, or ``""``."""
    return str(getattr(error, "sqlstate", None) or "")


def is_conflict(error: BaseException) -> bool:
    """Return whether the transaction may succeed if it is run again at once."""
    return sqlstate(error) in _CONFLICTS


def is_gone(error: BaseException) -> bool:
    """Return whether the connection cannot be used any more; another one may work."""
    if isinstance(error, asyncpg.PostgresError):
        code = sqlstate(error)
        ended = error.severity_en in ("FATAL", "PANIC") and not code.startswith(_LOCKED_OUT)
        return ended or code.startswith(_GONE)
    return isinstance(error, LOST)


def is_final(error: BaseException) -> bool:
    """Return whether the server has said that the transaction was not committed."""
    return isinstance(error, asyncpg.PostgresError) and not is_gone(error)


def is_worth_waiting(error: BaseException) -> bool:
    """Return whether connecting may work by itself after a while."""
    if isinstance(error, socket.gaierror | ssl.SSLError | asyncpg.ClientConfigurationError):
        return False
    return is_gone(error)


class Patience:
    """How long something is tried again: from the first trouble on, until something works."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def is_over(self) -> bool:
        """Return whether it has run out since this was first asked."""
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._seconds
        return now >= self._end

    def renew(self) -> None:
        """Begin anew with the next trouble."""
        self._end = None
