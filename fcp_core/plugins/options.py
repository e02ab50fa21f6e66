"""The core's own options: ``[fcp]``, and ``[fcp:server]`` and ``[fcp:admin]`` of ``fcp serve``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.plugins.files import SCOPES


def add_core_options(options: OptionRegistry) -> None:
    """Declare the core's options."""
    add = functools.partial(options.add, "")
    _add_plugin_options(add)
    _add_choices(add)
    _add_check_in_options(add)
    _add_task_options(add)
    _add_key_options(options)
    _add_http_options(add)
    _add_server_options(options)


def _add_plugin_options(add: Callable[..., None]) -> None:
    add("plugins", "list", (), "modules, or .py files, to load beyond the installed plugins")
    add("disable_plugins", "list", (), "names of plugins that are not loaded")
    add(
        "required_plugins",
        "list",
        (),
        "plugins or distributions without which the server does not start; 'name>=1.2' is allowed",
    )
    add("trace_hooks", "bool", "no", "write every hook call to the log fcp.hooks")


def _add_choices(add: Callable[..., None]) -> None:
    text = "aggregators that replace the reference ones for the intrinsics they serve"
    add("aggregator", "list", (), text, scopes=SCOPES)
    text = "the aggregation protocol of a task that names none"
    add("protocol", "str", "simple", text, scopes=SCOPES)
    add("selection", "str", "fifo", "the selection policy of a task that names none", scopes=SCOPES)
    text = "eligibility policies, all of which a device must pass"
    add("eligibility", "list", (), text, scopes=SCOPES)
    places = ("population",)
    text = "refuse tasks that name other aggregators than the configured ones, or options of them"
    text += "; not set: only where they undo what the configuration says; no: none, with a warning"
    add("require_aggregators", "bool", None, text, scopes=places)
    for kind in ("protocol", "selection", "durability"):
        text = f"refuse tasks that name another {kind} than the configured one"
        text += "" if kind == "durability" else ", or options of it"
        add(f"require_{kind}", "bool", "no", text, scopes=places)
    add("storage", "str", "memory", "where tasks, sessions and partial aggregates are kept")
    text = "how long a member owns a population without a sign of life: a takeover takes no longer"
    add("lease_seconds", "duration", "6s", text, minimum=0.2)
    add("engine", "str", "local", "where accumulators run")
    text = "pages that are served where the admin API is, to those who have its token"
    add("pages", "list", (), text)


def _add_check_in_options(add: Callable[..., None]) -> None:
    population = ("population",)
    for name, default, word in (("retry_min", "10s", "shortest"), ("retry_max", "30s", "longest")):
        text = f"the {word} time after which a device comes back"
        add(name, "duration", default, text, scopes=population)
    text = "how long a device that checks in waits for a task to open before it is sent away"
    add("check_in_hold", "duration", 0, text, minimum=0, scopes=population)
    text = "how often a waiting device asks again; less often where very many wait"
    add("polling_interval", "duration", "500ms", text, minimum=0.001, scopes=population)
    text = "how long a device session lives from check-in to the start of its last assignment"
    add("session_timeout", "duration", "15m", text, scopes=population)
    text = "devices that may be at work at a time in a population, on all its tasks together"
    add("max_at_work", "int", None, text, minimum=1, scopes=population)
    text = (
        "assignments of one address or API key that may be silent for longer than the task's other "
        "devices, before it gets no more; as many as it brought contributions are allowed in any "
        "case, and this machine's address has no such limit; 0: any number"
    )
    add("max_silent_per_sender", "int", 10, text, minimum=0, scopes=population)


def _add_task_options(add: Callable[..., None]) -> None:
    text = "how long an assigned device may take before it counts as dropped; after a fifth of it "
    text += "another one gets the place of a silent one, until it is known how long devices take"
    add("assignment_timeout", "duration", "10m", text, scopes=SCOPES)
    text = "when a task without a deadline of its own ends"
    add("task_deadline", "duration", "1h", text, scopes=SCOPES)
    text = "how long a task that ended is kept, with its result"
    add("task_retention", "duration", "30d", text, scopes=SCOPES)
    text = (
        "devices assigned at a time, as a multiple of the contributions still missing; not set: as "
        "many as drop-outs seen make necessary, at first 4 for 3 and 115 for 100"
    )
    add("over_selection", "float", None, text, minimum=1.0, scopes=SCOPES)
    text = "a task ends when so many of its first devices fail, all in the same way; 0: it does not"
    add("alike_failures", "int", 10, text, minimum=0, scopes=SCOPES)
    text = (
        "how a device is answered that comes too late through no fault of its own: OK, and what it "
        "sends is dropped, or ABORTED, which sends published clients away for four hours"
    )
    add("late_contributions", "choice", "accept", text, choices=("accept", "refuse"), scopes=SCOPES)
    text = (
        "what a crash may lose of an open task: contribution (nothing that was answered OK) or "
        "round (all of it); only round is left by a storage that does not last, and by an "
        "aggregator that keeps every contribution"
    )
    choices = ("contribution", "round")
    add("durability", "choice", "contribution", text, choices=choices, scopes=SCOPES)
    text = "what an aggregator may keep of a task if it needs all contributions, such as a median"
    add("max_kept_bytes", "bytes", "1GiB", text, minimum=1, scopes=SCOPES)


def _add_key_options(options: OptionRegistry) -> None:
    text = (
        "the file with the keys that sign what devices are given; without one it lies beside the "
        "storage, and is made at the first start"
    )
    options.add("", "token_keys_file", "path", None, text)
    text = "what that file says, instead of a file; only from the environment"
    options.add("", "token_keys", "str", None, text, secret=True)
    text = (
        "a file with keys, 64 hexadecimal digits in each line; with it, what aggregators keep of "
        "contributions is stored, encrypted with the first and read with any"
    )
    options.add("", "kept_keys_file", "path", None, text)


def _add_http_options(add: Callable[..., None]) -> None:
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


def _add_server_options(options: OptionRegistry) -> None:
    """Declare the options of ``[fcp:server]`` and ``[fcp:admin]``."""

    def server(name: str, type: str, default: Any, help: str, minimum: float | None = None) -> None:
        options.add("server", name, type, default, help, minimum=minimum)

    server("host", "str", "localhost", "what 'fcp serve' listens on; '*' is every interface")
    server("port", "int", 8080, "its port; 0 takes a free one", 0)
    server("processes", "int", 1, "processes that serve as one", 1)
    server("populations", "list", (), "the only populations; none: those that tasks are for")
    server("certfile", "path", None, "a PEM certificate; with one it speaks HTTPS only")
    server("keyfile", "path", None, "the certificate's key, if that is in a file of its own")
    text = "host:port where other members reach it, on a private network; of a shared storage only"
    server("member_address", "str", None, text)
    server("external_url", "str", None, "where devices reach it, if not where it listens")

    def admin(name: str, type: str, default: Any, help: str, secret: bool = False) -> None:
        options.add("admin", name, type, default, help, secret=secret)

    admin("token_file", "path", None, "a file with the token that the admin API asks for")
    admin("token", "str", None, "that token itself; better from the environment", secret=True)
    names = "common names of client certificates that open the admin API as the token does"
    admin("certificate_names", "list", (), names)
    admin("url", "str", "http://localhost:8080/", "the server that 'fcp tasks' talks to")
    admin("ca_file", "path", None, "PEM certificates to trust instead of the system's")
    admin("client_certfile", "path", None, "a PEM certificate that 'fcp tasks' shows")
    admin("client_keyfile", "path", None, "its key, if that is in a file of its own")


def check_core_options(config: Config) -> None:
    """Refuse core options that contradict each other, for all or for one population.

    :raises UsageError: naming both options and where they came from.
    """
    for population in ("", *config.scopes("population")):
        view = config.scoped(population)
        low, high = view.get("retry_min"), view.get("retry_max")
        if low > high:
            raise UsageError(
                f"retry_min ({low:g}s, from {view.origin('', 'retry_min')}) is above retry_max "
                f"({high:g}s, from {view.origin('', 'retry_max')})."
            )
