"""The plugin: counts events, and offers the pages."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.plugins.pages import PagesFactory, Site
from fcp_core.rounds.events import Event
from fcp_dashboard.recorder import Recorder

logger = logging.getLogger("fcp_dashboard")

NAME = "dashboard"
#: What may be done from a page, if the operator allows it.
ACTIONS = ("cancel", "submit")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``[fcp:dashboard]`` says.

    :param actions: what those who log in with the admin's token may do.
    :param viewer_token: lets in those who may look only; None: there are none.
    :param hosts: further names by which a browser may reach it on this machine.
    :param login_seconds: how long a login lasts.
    """

    actions: Sequence[str]
    viewer_token: str | None
    hosts: Sequence[str]
    login_seconds: float

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Read them.

        :raises UsageError: if an action is none, or the file with the token cannot be used.
        """
        options = config.section(NAME)
        unknown = [name for name in options["actions"] if name not in ACTIONS]
        if unknown:
            raise UsageError(
                f"{config.origin(NAME, 'actions')}: there is no action {', '.join(unknown)}; "
                f"there are {', '.join(ACTIONS)}."
            )
        return cls(
            options["actions"],
            _token(options["viewer_token_file"]),
            options["hosts"],
            options["login_lifetime"],
        )


def _token(path: Any) -> str | None:
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the viewer token file {path}: {error}.") from None
    if len(token) < 16 or not token.isprintable():
        raise UsageError(f"the viewer token in {path} must have at least 16 printable characters.")
    return token


class DashboardPlugin:
    """The plugin of one server."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._url: Callable[[], str] = str

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""
        add = options.add
        text = f"what the admin may do from a page: {', '.join(ACTIONS)}; empty: look only"
        add(NAME, "actions", "list", (), text)
        text = "a file with a token that lets people look, and do nothing else"
        add(NAME, "viewer_token_file", "path", None, text)
        text = "names by which a browser on this machine may reach it, beside localhost"
        add(NAME, "hosts", "list", (), text)
        add(NAME, "login_lifetime", "duration", "12h", "how long a login lasts", minimum=60)

    @hookimpl
    def fcp_register_pages(self) -> Iterable[PagesFactory]:
        """Offer the pages."""
        return [PagesFactory(NAME, "what devices, tasks and members do, in a browser", self._make)]

    @hookimpl
    def fcp_register_commands(self) -> Iterable[click.Command]:
        """Offer the commands."""
        from fcp_dashboard.commands import COMMANDS

        return COMMANDS

    @hookimpl
    def fcp_event(self, event: Event) -> None:
        """Count the event."""
        if self._recorder is not None:
            self._recorder.event(event)

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Say where the pages are."""
        if self._recorder is not None:
            logger.info("the dashboard is at %s%s/", self._url(), NAME)

    def _make(self, site: Site) -> Any:
        from fcp_dashboard.pages import Dashboard

        self._recorder = Recorder()
        self._url = site.url
        return Dashboard(site, Settings.of(site.config), self._recorder)
