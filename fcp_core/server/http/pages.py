"""The handlers of what no device asks for: health and metrics."""

from __future__ import annotations

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.prometheus import CONTENT_TYPE


class HealthHandler(Handler):
    """``/healthz``: the process answers. ``/readyz``: it takes requests."""

    label = "health"
    throttled = False

    async def serve(self) -> None:
        """Answer 200, or 503 once a stop was requested or the shared storage does not answer."""
        ready, words = True, b"ok\n"
        members = self.context.members
        if self.path == "/readyz":
            if self.context.stopping:
                ready, words = False, b"stopping\n"
            elif members is not None and not members.in_touch:
                ready, words = False, b"the storage does not answer\n"
        self.answer(
            words,
            200 if ready else 503,
            {"Content-Type": "text/plain; charset=utf-8"},
        )


class MetricsHandler(Handler):
    """``/metrics``: the server's metrics, as Prometheus reads them."""

    label = "metrics"
    throttled = False

    async def serve(self) -> None:
        """Answer all metrics."""
        assert self.context.metrics is not None  # there is no such route without them
        self.answer(await self.context.metrics.expose(), headers={"Content-Type": CONTENT_TYPE})


class NothingHandler(Handler):
    """Answers 404: there is nothing at the address."""

    label = "nothing"

    def admit(self) -> None:
        """Refuse.

        :raises StatusError: always.
        """
        raise StatusError(Code.NOT_FOUND, "there is nothing here")
