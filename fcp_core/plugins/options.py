"""The core's own options: what may stand in ``[fcp]``."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.plugins.files import SCOPES
from fcp_core.plugins.http_options import add_http_options
from fcp_core.plugins.server_options import add_server_options


def add_core_options(options: OptionRegistry) -> None:
    """Declare the core's options."""
    add = functools.partial(options.add, "")
    _add_plugin_options(add)
    _add_choices(add)
    _add_check_in_options(add)
    _add_task_options(add)
    _add_key_options(options)
    add_http_options(options)
    add_server_options(options)


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
