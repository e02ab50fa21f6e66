"""Posts events to a webhook, one JSON object a request, from a thread of its own.

The event loop never waits: an event goes into a queue of bounded length, and is dropped and counted
if there is no room. An event that the receiver does not take is tried again a few times.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from typing import get_args
from urllib.parse import urlsplit

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.rounds.events import Event

logger = logging.getLogger("fcp_webhook")

#: What ``events`` may list.
KINDS = tuple(kind.__name__ for kind in get_args(Event))


def encode(event: Event) -> bytes:
    """Return an event as JSON: its fields, and ``event``, the name of its kind."""
    fields = dataclasses.asdict(event)
    values = {k: v.name if isinstance(v, enum.Enum) else v for k, v in fields.items()}
    return json.dumps({"event": type(event).__name__, **values}).encode()


class Sender:
    """A thread that posts what is put into its queue.

    :param secret: signs each body, if there is one: the header ``X-FCP-Signature`` is
        ``sha256=`` and the HMAC-SHA256 in hexadecimal digits.
    :param patience: seconds that one request may take.
    :param attempts: how often an event is tried.
    """

    def __init__(
        self, url: str, secret: str | None, size: int, patience: float, attempts: int
    ) -> None:
        # Not loaded with the plugin: the command line looks at every one without posting anything.
        import urllib3

        self._url = url
        self._secret = secret
        self._attempts = attempts
        self._queue: queue.Queue[bytes | None] = queue.Queue(size)
        self._failures = urllib3.exceptions.HTTPError
        self._pool = urllib3.PoolManager(timeout=patience, retries=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fcp-webhook", daemon=True)
        #: How many events were dropped because the queue was full.
        self.dropped = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, body: bytes) -> None:
        """Add a body; it is dropped if there is no room."""
        try:
            self._queue.put_nowait(body)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning("events come faster than the webhook takes them; some are dropped")

    def stop(self, timeout: float) -> None:
        """Post what is in the queue, but for no longer than *timeout* seconds."""
        deadline = time.monotonic() + timeout
        self._stopping.set()  # no more pauses between attempts
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            logger.warning("the webhook takes no events; those in the queue are lost")
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("the webhook is slow; some events are lost")
        else:
            self._pool.clear()
        if self.dropped:
            logger.warning("%d events were dropped for want of room", self.dropped)

    def _run(self) -> None:
        while (body := self._queue.get()) is not None:
            self._post(body)

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._secret is not None:
            digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-FCP-Signature"] = f"sha256={digest}"
        problem = ""
        for attempt in range(self._attempts):
            if attempt:
                self._stopping.wait(min(2.0**attempt, 30.0))
            try:
                status = self._pool.request("POST", self._url, body=body, headers=headers).status
            except self._failures as error:
                problem = str(error)
                continue
            if status < 300:
                return
            problem = f"HTTP {status}"
            if 400 <= status < 500 and status not in (408, 429):
                break  # it will not be taken another time either
        logger.warning("the webhook did not take an event: %s", problem)


class WebhookPlugin:
    """The plugin of one server."""

    def __init__(self) -> None:
        self._sender: Sender | None = None
        self._kinds: frozenset[str] = frozenset()
        self._drain = 0.0

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""
        add = options.add
        add("webhook", "url", "str", None, "where events are posted; not set: nowhere")
        add(
            "webhook",
            "events",
            "list",
            ("TaskOpened", "TaskClosed"),
            f"which events are posted: {', '.join(KINDS)}; empty: all",
        )
        add("webhook", "secret", "str", None, "signs each request with HMAC-SHA256", secret=True)
        add("webhook", "queue", "int", 1000, "how many events may wait", minimum=1)
        add("webhook", "timeout", "duration", "10s", "how long one request may take", minimum=0.001)
        add("webhook", "attempts", "int", 4, "how often an event is tried", minimum=1)
        add("webhook", "drain_timeout", "duration", "5s", "how long the end waits for the queue")

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Start the thread, if there is a URL."""
        options = config.section("webhook")
        url, kinds = options["url"], options["events"]
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise UsageError(
                f"{config.origin('webhook', 'events')}: there are no events {', '.join(unknown)}; "
                f"there are {', '.join(KINDS)}."
            )
        if url is None:
            return
        if not _is_address(url):
            raise UsageError(
                f"{config.origin('webhook', 'url')}: {url!r} is no http:// or https:// URL."
            )
        self._kinds = frozenset(kinds or KINDS)
        self._drain = options["drain_timeout"]
        self._sender = Sender(
            url, options["secret"], options["queue"], options["timeout"], options["attempts"]
        )
        self._sender.start()

    @hookimpl
    def fcp_event(self, event: Event) -> None:
        """Put the event into the queue."""
        if self._sender is not None and type(event).__name__ in self._kinds:
            self._sender.put(encode(event))

    @hookimpl
    async def fcp_shutdown(self) -> None:
        """Post what is left."""
        import asyncio

        if self._sender is not None:
            sender, self._sender = self._sender, None
            await asyncio.get_running_loop().run_in_executor(None, sender.stop, self._drain)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        return False
