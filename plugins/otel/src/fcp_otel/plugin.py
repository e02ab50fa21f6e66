"""The plugin: its options, and the SDK that sends the spans."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl

# The SDK is imported at the start of a server: the command line looks at every plugin.
if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from fcp_core.plugins.config import Config, OptionRegistry
    from fcp_core.rounds.events import Event
    from fcp_otel.spans import Spans

logger = logging.getLogger("fcp_otel")

#: How many seconds the end waits for the collector to take the last spans.
PATIENCE = 5.0
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TracesPlugin:
    """The plugin of one server.

    :param processor: takes the spans instead of the exporter that the options describe.
    """

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        self._processor = processor
        self._providers: list[TracerProvider] = []
        self._spans: Spans | None = None
        self._now: Callable[[], float] = time.time

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""

        def add(name: str, kind: str, default: Any, text: str, **more: Any) -> None:
            options.add("otel", name, kind, default, text, **more)

        add(
            "endpoint",
            "str",
            None,
            f"where traces go, by OTLP over HTTP; not set: {' or '.join(_VARIABLES)}, or nowhere",
        )
        add("service_name", "str", "fcp-server", "what the traces say they come from")
        add("ratio", "float", 1.0, "the share of device sessions that is traced", minimum=0)
        add("open_spans", "int", 100_000, "how many sessions are followed at a time", minimum=1)

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Begin, if there is somewhere to send spans to.

        :raises UsageError: for an option that does not do.
        """
        options = config.section("otel")
        endpoint, ratio = options["endpoint"], options["ratio"]
        if ratio > 1:
            raise UsageError(
                f"{config.origin('otel', 'ratio')}: {ratio:g} is more than all sessions; 1 is all."
            )
        if endpoint is not None and not _is_address(endpoint):
            raise UsageError(
                f"{config.origin('otel', 'endpoint')}: {endpoint!r} is no http:// or https:// URL; "
                "a collector's is http://localhost:4318/v1/traces."
            )
        if (
            self._processor is None
            and endpoint is None
            and not any(map(os.environ.get, _VARIABLES))
        ):
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        from fcp_otel.spans import Spans, sampler

        resource = Resource.create(
            {
                "service.name": options["service_name"],
                "service.version": importlib.metadata.version("fcp-server"),
            }
        )
        processor = self._processor or _exporting(endpoint)
        self._providers = [
            TracerProvider(sampler(share), resource, shutdown_on_exit=False) for share in (ratio, 1)
        ]
        for provider in self._providers:
            provider.add_span_processor(processor)
        sessions, tasks = self._providers
        self._spans = Spans(sessions, tasks, options["open_spans"])

    @hookimpl
    def fcp_event(self, event: Event) -> None:
        """Begin, add to or end spans."""
        if self._spans is not None:
            self._spans.take(event)

    @hookimpl
    async def fcp_shutdown(self) -> None:
        """End what is open, and send what is left, but not for a collector that is gone."""
        import asyncio
        import threading

        if self._spans is not None:
            spans, self._spans = self._spans, None
            spans.stop(self._now())
            loop = asyncio.get_running_loop()
            for provider in self._providers[:1]:  # both have the same processor
                # It tries each batch for a minute and more; a daemon keeps no process.
                sending = threading.Thread(target=provider.shutdown, daemon=True)
                sending.start()
                await loop.run_in_executor(None, sending.join, PATIENCE)
                if sending.is_alive():
                    logger.warning("the last spans were not sent: the collector does not answer")


def _exporting(endpoint: str | None) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        return False
