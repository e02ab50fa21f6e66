"""The handlers of what no device asks for: health and metrics."""

from __future__ import annotations

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.prometheus import CONTENT_TYPE, OPENMETRICS_TYPE


class HealthHandler(Handler):
    """``/healthz``: the process answers. ``/readyz``: it takes devices."""

    label = "health"
    throttled = False

    async def serve(self) -> None:
        """Answer 200; 503 with the reason if the server stops, or can store nothing."""
        problem = ""
        if self.path == "/readyz":
            if self.context.stopping:
                problem = "stopping"
            else:
                problem = await self.context.services.problem()
        self.answer(
            f"{problem or 'ok'}\n".encode(),
            503 if problem else 200,
            {"Content-Type": "text/plain; charset=utf-8"},
        )


class MetricsHandler(Handler):
    """``/metrics``: the server's metrics, as Prometheus reads them."""

    label = "metrics"
    throttled = False

    async def serve(self) -> None:
        """Answer all metrics, as OpenMetrics to whoever takes that."""
        assert self.context.metrics is not None  # there is no such route without them
        openmetrics = "application/openmetrics-text" in self.headers.get("Accept", "")
        body = await self.context.metrics.expose(openmetrics)
        self.answer(
            body, headers={"Content-Type": OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE}
        )


class NothingHandler(Handler):
    """Answers 404: there is nothing at the address."""

    label = "nothing"

    def admit(self) -> None:
        """Refuse.

        :raises StatusError: always.
        """
        raise StatusError(Code.NOT_FOUND, "there is nothing here")
