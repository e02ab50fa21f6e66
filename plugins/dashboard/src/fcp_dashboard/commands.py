"""The commands: a link to log in."""

from __future__ import annotations

import click

COMMANDS: list[click.Command] = []
