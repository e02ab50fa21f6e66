"""The core options of the HTTP server: limits, TLS, downloads, metrics, logs."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fcp_core.plugins.files import SCOPES
from fcp_core.plugins.registry import OptionRegistry


def add_http_options(options: OptionRegistry) -> None:
    """Declare them, in ``[fcp]``."""
    add = functools.partial(options.add, "")
    _add_limits(add)
    _add_resources(add)
    add("metrics", "bool", "false", "serve /metrics for Prometheus")
    add("metrics_address", "str", None, "host:port where /metrics is, instead of with the devices")
    add("log_format", "choice", "text", "how the log is written", choices=("text", "json"))


def _add_limits(add: Callable[..., None]) -> None:
    for name, type, default, text, minimum in (
        ("max_body", "bytes", "1GiB", "the largest request body, as it is sent", 1),
        ("max_decompressed", "bytes", "1GiB", "the largest request body after decompression", 1),
        ("max_call", "bytes", "1MiB", "the largest call of the protocol; many are smaller", 1),
        ("max_in_flight", "bytes", "2GiB", "the sum of all uploads held at a time", 1),
        (
            "idle_timeout",
            "duration",
            "1m",
            "how long a request's header, or a call, may take",
            1e-3,
        ),
        ("body_timeout", "duration", "10m", "how long an upload or a download may take", 1e-3),
        ("max_connections", "int", 10_000, "connections at a time; the next is closed at once", 1),
        (
            "max_connections_per_address",
            "int",
            1_000,
            "those of one address or IPv6 /64; 0: any number; this machine has no such limit",
            0,
        ),
        ("max_sessions", "int", 500_000, "device sessions that are kept at a time", 1),
    ):
        add(name, type, default, text, minimum=minimum)
    text = (
        "how long the server takes connections once it stops, with /readyz at 503, so that a load "
        "balancer notices; at most drain_timeout"
    )
    add("drain_notice", "duration", 0, text, minimum=0)
    add("drain_timeout", "duration", "10s", "how long requests may go on once the server stops")
    each = "requests a second from one"
    text = f"{each} address, or one IPv6 /64; 0: no limit"
    add("rate_per_address", "float", "0", text, minimum=0)
    add("rate_per_key", "float", "0", f"{each} API key; 0: no limit", minimum=0)
    text = "PEM certificates that sign those of devices, and their revocation lists: mutual TLS"
    add("client_ca", "path", None, text)
    text = "whether a device must have a certificate of client_ca"
    add("client_certificates", "choice", "required", text, choices=("required", "optional"))
    text = "a PEM certificate that this member shows the others of its server: TLS between them"
    add("member_certfile", "path", None, text)
    add("member_keyfile", "path", None, "the key of member_certfile, if in a file of its own")
    add("member_ca", "path", None, "PEM certificates that sign those of members, and no others")


def _add_resources(add: Callable[..., None]) -> None:
    add("download_prefix", "str", None, "what stands in front of data/, if not the server: a CDN")
    text = "plans and checkpoints of fewer bytes lie in the assignment; 0: none does"
    add("inline_resources_below", "bytes", "0B", text, minimum=0, scopes=SCOPES)
    text = "where plans, checkpoints and slices of federated select are served from"
    choices = ("memory", "storage")
    add("resources_from", "choice", "memory", text, choices=choices, scopes=SCOPES)
