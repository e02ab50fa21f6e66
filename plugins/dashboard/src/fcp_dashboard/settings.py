"""What the configuration says of the dashboard."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config

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
