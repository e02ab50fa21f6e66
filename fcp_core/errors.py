"""Errors that are not answers to a device; those are ``fcp_core.protocol.status.StatusError``."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from typing import Any


def plugin_errors(*, awaited: bool = False) -> tuple[type[BaseException], ...]:
    """Return what code of plugins may raise without more than its call failing, after ``except``.

    That is anything: a ``sys.exit`` or a ``KeyboardInterrupt`` in it, or in a library that it
    calls, must not end a server or a device. Only the operator's own Ctrl-C does.

    :param awaited: whether it was waited for, or in a generator: those are cancelled and closed.
    """
    if isinstance(sys.exc_info()[1], KeyboardInterrupt) and _may_be_ctrl_c():
        return ()
    return (Exception, SystemExit, KeyboardInterrupt) if awaited else (BaseException,)


def __getattr__(name: str) -> Any:
    """Return what another name takes the place of, with a warning."""
    if name != "PLUGIN_ERRORS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = "except plugin_errors()"
    message = f"{__name__}.{name} is deprecated and goes with the next release: write {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return (Exception, SystemExit)


def _may_be_ctrl_c() -> bool:
    """Whether a SIGINT would be raised here: not in a thread, nor where it has its own handler."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def describe(error: BaseException | None) -> str:
    """Return the name and the message of an error that a plugin raised, whatever it may be."""
    try:
        return f"{type(error).__name__}: {error}"
    except plugin_errors():
        return f"{type(error).__name__}, which has no message that can be read"


def reason(error: Exception) -> str:
    """Return why a file cannot be read, in words: without its name and the system's number."""
    return getattr(error, "strerror", None) or str(error)


class FcpError(Exception):
    """Base of this project's own errors."""


class UsageError(FcpError):
    """A mistake that an operator or a plugin's author can mend.

    The command line prints it as one paragraph, without a traceback, and exits with status 2.
    """


class ListenError(UsageError, OSError):
    """A server cannot listen where it was told to. ``errno`` says why, as for any ``OSError``.

    :param message: why, in words.
    :param errno: the system's number for it.
    """

    def __init__(self, message: str, errno: int | None) -> None:
        super().__init__(message)
        self.errno = errno


class MissingExtraError(UsageError):
    """A part was used whose optional dependencies are not installed.

    :param what: what was asked for, such as ``"the TFF platform"``.
    :param extra: the extra that brings it, such as ``"tff"``.
    :param instead: a sentence that says what can be done without.
    """

    def __init__(self, what: str, extra: str, instead: str = "") -> None:
        how = f"pip install 'fcp-server[{extra}]', or '.[{extra}]' in a checkout"
        if extra == "tff":  # one of its pins cannot be had
            how = "docs/first-program.md says how to install 'fcp-server[tff]', with uv or pip"
        super().__init__(
            f"{what} needs packages that are not installed: {how}."
            + (f" {instead}" if instead else "")
        )
        self.extra = extra
