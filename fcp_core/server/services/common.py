"""What the services that devices call have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fcp_core.rounds.clock import Clock
from fcp_core.rounds.events import Event
from fcp_core.rounds.tokens import Tokens, TokenSource


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
