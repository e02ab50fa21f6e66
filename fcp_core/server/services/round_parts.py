"""What a round works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcp_core.rounds.clock import Clock
from fcp_core.rounds.contributions import Contribution, ContributionBook
from fcp_core.rounds.events import Event
from fcp_core.rounds.tasks import TaskStatus
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.ticker import Ticker

if TYPE_CHECKING:
    from fcp_core.server.services.round import Round


@dataclass(frozen=True)
class RoundParts:
    """What a round works with.

    :param on_left: told that devices have left the task, and whether only by contributing.
    :param on_issue: told of a contribution that got a fresh authorization token, when the token is
        forgotten, and the hash of the one it replaces, if any.
    :param on_loss: told that contributions were lost, and why: the round must begin anew.
    :param on_end: stores how the round ended; returns the status that counts.
    """

    clock: Clock
    ticker: Ticker
    tokens: TokenSource
    book: ContributionBook
    notify: Callable[[Event], None]
    on_left: Callable[[Round, bool], None]
    on_issue: Callable[[Contribution, float, str | None], None]
    on_loss: Callable[[Round, str], None]
    on_end: Callable[[Round, bytes | None], Awaitable[TaskStatus]]
