"""What the services that devices call have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from fcp_core.rounds.clock import Clock
from fcp_core.rounds.events import Event
from fcp_core.rounds.tokens import Tokens, TokenSource

#: The address that the call in progress comes from, or the network that counts as one; empty: this
#: machine, or not known.
ADDRESS: ContextVar[str] = ContextVar("fcp_address", default="")


def origin_of(sender: str | None) -> tuple[str, ...]:
    """Return the address and the key that a call comes from, as far as they tell devices apart."""
    parts = (("address", ADDRESS.get()), ("key", sender))
    return tuple(f"{kind} {value}" for kind, value in parts if value)


@dataclass(frozen=True)
class Common:
    """What the services that devices call work with.

    :param tokens: makes and reads what devices hold.
    :param secrets: random bytes and ids.
    :param base_url: returns where devices reach the server, with a slash at the end.
    :param data_url: returns what stands in front of ``data/`` in the addresses of downloads.
    :param notify: called with each event.
    """

    clock: Clock
    tokens: Tokens
    secrets: TokenSource
    base_url: Callable[[], str]
    data_url: Callable[[], str]
    notify: Callable[[Event], None]
