"""The plugin: counts events, and offers the pages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import click

from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.plugins.pages import PagesFactory, Site
from fcp_core.rounds.events import Event
from fcp_dashboard.recorder import Recorder
from fcp_dashboard.settings import ACTIONS, NAME, Settings

logger = logging.getLogger("fcp_dashboard")


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
