"""The core options of what stands between devices and rounds: limits, downloads, logs, metrics."""

from __future__ import annotations

from fcp_core.plugins.files import SCOPES
from fcp_core.plugins.registry import OptionRegistry


def add_front_options(options: OptionRegistry) -> None:
    """Declare them, in ``[fcp]``."""

    def add(name: str, type: str, default: object, help: str, minimum: float | None = None) -> None:
        options.add("", name, type, default, help, minimum=minimum)

    add("max_body", "bytes", "1GiB", "the largest request body, as it is sent", 1)
    add("max_decompressed", "bytes", "1GiB", "the largest request body after decompression", 1)
    add("max_in_flight", "bytes", "2GiB", "the sum of all request bodies held at a time", 1)
    add("idle_timeout", "duration", "1m", "how long a request's header, or a call, may take", 0.001)
    add("body_timeout", "duration", "10m", "how long an upload or a download may take", 0.001)
    add("drain_timeout", "duration", "10s", "how long requests may go on once the server stops")
    add("max_connections", "int", 10_000, "connections at a time; the next is closed at once", 1)
    add("max_sessions", "int", 500_000, "device sessions that are kept at a time", 1)
    add("max_operations", "int", 100_000, "devices that may wait for a task at a time", 1)
    each = "requests a second from one"
    add("rate_per_address", "float", "0", f"{each} address, or one IPv6 /64; 0: no limit", 0)
    add("rate_per_key", "float", "0", f"{each} API key; 0: no limit", 0)
    add("client_ca", "path", None, "PEM certificates that sign those of devices: mutual TLS")
    options.add(
        "",
        "client_certificates",
        "choice",
        "required",
        "whether a device must have a certificate of client_ca",
        choices=("required", "optional"),
    )
    add("download_prefix", "str", None, "what stands in front of data/, if not the server: a CDN")
    options.add(
        "",
        "inline_resources_below",
        "bytes",
        "0B",
        "plans and checkpoints of fewer bytes lie in the assignment; 0: none does",
        minimum=0,
        scopes=SCOPES,
    )
    options.add(
        "",
        "max_inline_resource",
        "bytes",
        "64KiB",
        "the largest plan or checkpoint in an assignment if the task wants them there; 0: none",
        minimum=0,
        scopes=SCOPES,
    )
    options.add(
        "",
        "resources_from",
        "choice",
        "memory",
        "where plans, checkpoints and slices of federated select are served from",
        choices=("memory", "storage"),
        scopes=SCOPES,
    )
    add("resource_cache", "bytes", "64MiB", "memory for what was read from the storage lately", 0)
    add("metrics", "bool", "false", "serve /metrics for Prometheus")
    add("metrics_address", "str", None, "host:port where /metrics is, instead of with the devices")
    options.add(
        "", "log_format", "choice", "text", "how the log is written", choices=("text", "json")
    )
