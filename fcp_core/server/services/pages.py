"""The pages that plugins bring: made once, and asked for each request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from fcp_core.errors import plugin_errors
from fcp_core.plugins.pages import PageAnswer, PageRequest, Pages
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.server")


class PageServer(Protocol):
    """Answers requests for pages: here, or in the process that decides."""

    async def answer(self, name: str, request: PageRequest) -> PageAnswer:
        """Answer a request for the pages of a name.

        :raises StatusError: to answer with that.
        """
        ...


class PluginPages:
    """The pages of the process that decides.

    :param pages: by name.
    """

    def __init__(self, pages: Mapping[str, Pages]) -> None:
        self._pages = dict(pages)

    async def answer(self, name: str, request: PageRequest) -> PageAnswer:
        """Have a plugin answer.

        :raises StatusError: what it raises; INTERNAL if it raises anything else.
        """
        try:
            return await self._pages[name].answer(request)
        except StatusError:
            raise
        except plugin_errors(awaited=True):
            logger.exception("the pages %r failed", name)
            message = "the page failed; the server's log says why"
            raise StatusError(Code.INTERNAL, message) from None
