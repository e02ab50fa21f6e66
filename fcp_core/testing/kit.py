"""What the conformance kits share: how a law is tried, and the guard against the outside world."""

from __future__ import annotations

import builtins
import contextlib
import datetime
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from fcp_core.errors import MissingExtraError
from fcp_core.testing.laws import Laws

try:
    import pytest
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise MissingExtraError("the conformance kit", "testing") from error

__all__ = ["Conformance", "Outside", "outside_calls", "pytest"]


class Conformance(Laws):
    """Base of the kits: how often each law is tried, and how.

    A failing example is made small unless :attr:`shrink` is off; with :attr:`derandomize` the same
    examples are tried each time.

    A kit's properties are functions inside of its methods, since hypothesis refuses one decorated
    method that several subclasses inherit.
    """

    max_examples: ClassVar[int] = 25
    shrink: ClassVar[bool] = True
    derandomize: ClassVar[bool] = False

    def check(self, law: Callable[..., None], *strategies: SearchStrategy[Any]) -> None:
        """Try a law with examples that the strategies draw, one an argument."""
        given(*strategies)(self._settings()(law))()

    def check_machine(self, machine: type[RuleBasedStateMachine], steps: int) -> None:
        """Try the rules and invariants of a state machine in random orders."""
        run_state_machine_as_test(machine, settings=self._settings(stateful_step_count=steps))

    def _settings(self, **more: Any) -> settings:
        return settings(
            max_examples=self.max_examples,
            deadline=None,
            database=None,
            derandomize=self.derandomize,
            phases=tuple(phase for phase in Phase if self.shrink or phase is not Phase.shrink),
            suppress_health_check=(
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
            ),
            **more,
        )


class Outside:
    """What was called of the outside world, by kind: ``io``, ``clock``, ``randomness``."""

    def __init__(self) -> None:
        self.io: list[str] = []
        self.clock: list[str] = []
        self.randomness: list[str] = []
        self._thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether the running thread is the one that is watched."""
        return self._thread == threading.get_ident()


@contextlib.contextmanager
def outside_calls() -> Iterator[Outside]:
    """Note what this thread calls of files, sockets, processes, clocks and global randomness.

    Nothing is prevented. What is imported for the first time counts as reading files: run the code
    once before. A clock or generator inside of an extension module other than NumPy is not seen.
    """
    if not _hook_installed:
        # An audit hook stays for ever; it does nothing unless a guard is on.
        sys.addaudithook(_audit)
        _hook_installed.append(True)
    outside = Outside()
    profile, before, collects = sys.getprofile(), _numpy_state(), gc.isenabled()
    # Others hear of a collection, and read the clock then.
    gc.disable()
    _watching.append(outside)
    sys.setprofile(lambda frame, event, arg: _profile(outside, event, arg))
    try:
        yield outside
    finally:
        sys.setprofile(profile)
        _watching.remove(outside)
        if collects:
            gc.enable()
        if _numpy_state() != before:
            outside.randomness.append("numpy.random")


_hook_installed: list[bool] = []
_watching: list[Outside] = []

_IO_EVENTS = ("open", "os.", "socket.", "subprocess.", "sqlite3.", "urllib.", "shutil.", "pathlib.")
_CLOCKS = frozenset(
    name
    for name in dir(time)
    if name == "sleep"
    or name.partition("_")[0] in ("time", "monotonic", "perf", "process", "clock")
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.startswith(_IO_EVENTS):
        for outside in _watching:
            if outside.is_here:
                outside.io.append(event)


def _profile(outside: Outside, event: str, function: Any) -> None:
    if event != "c_call":
        return
    name, owner = function.__name__, getattr(function, "__self__", None)
    if owner is time and name in _CLOCKS:
        outside.clock.append(f"time.{name}")
    elif isinstance(owner, type) and issubclass(owner, datetime.date):
        if name in ("now", "utcnow", "today"):
            outside.clock.append(f"datetime.{name}")
    elif owner is random._inst or function is os.urandom:
        outside.randomness.append(f"random.{name}")
    elif function is builtins.print or function is builtins.input:
        outside.io.append(name)


def _numpy_state() -> Any:
    name, keys, *rest = np.random.get_state()
    return name, np.asarray(keys).tobytes(), *rest
