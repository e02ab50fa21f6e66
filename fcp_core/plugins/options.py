"""The core's own options: what may stand in ``[fcp]``."""

from __future__ import annotations

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.plugins.files import SCOPES
from fcp_core.plugins.http_options import add_front_options
from fcp_core.plugins.server_options import add_server_options


def add_core_options(options: OptionRegistry) -> None:
    """Declare the core's options."""

    def add(
        name: str,
        type: str,
        default: object,
        help: str,
        minimum: float | None = None,
        scopes: tuple[str, ...] = (),
    ) -> None:
        options.add("", name, type, default, help, minimum=minimum, scopes=scopes)

    add("plugins", "list", (), "modules, or .py files, to load beyond the installed plugins")
    add("disable_plugins", "list", (), "names of plugins that are not loaded")
    add(
        "required_plugins",
        "list",
        (),
        "plugins or distributions without which the server does not start; 'name>=1.2' is allowed",
    )
    add("trace_hooks", "bool", "no", "write every hook call to the log fcp.hooks")
    add(
        "aggregator",
        "list",
        (),
        "aggregators that replace the reference ones for the intrinsics they serve",
        scopes=SCOPES,
    )
    add(
        "protocol",
        "str",
        "simple",
        "the aggregation protocol of a task that names none",
        scopes=SCOPES,
    )
    add("selection", "str", "fifo", "the selection policy of a task that names none", scopes=SCOPES)
    add(
        "eligibility",
        "list",
        (),
        "eligibility policies, all of which a device must pass",
        scopes=SCOPES,
    )
    add("storage", "str", "memory", "where tasks, sessions and partial aggregates are kept")
    add("engine", "str", "local", "where accumulators run")
    for name, default, word in (("retry_min", "10s", "shortest"), ("retry_max", "30s", "longest")):
        text = f"the {word} time after which a device comes back"
        add(name, "duration", default, text, scopes=("population",))
    add(
        "check_in_hold",
        "duration",
        0,
        "how long a device that checks in is kept waiting for a task to open, before it is sent "
        "away",
        0,
        scopes=("population",),
    )
    add(
        "polling_interval",
        "duration",
        "500ms",
        "how often a waiting device asks again",
        0.001,
        scopes=("population",),
    )
    add(
        "max_poll_rate",
        "float",
        1000.0,
        "polls a second of all waiting devices together: with more of them each asks less often, "
        "at least once a minute; 0: no limit",
        0,
        scopes=("population",),
    )
    add(
        "session_timeout",
        "duration",
        "15m",
        "how long a device session lives from check-in to the start of its last assignment",
        scopes=("population",),
    )
    add(
        "assignment_timeout",
        "duration",
        "10m",
        "how long an assigned device may take before it counts as dropped",
        scopes=SCOPES,
    )
    add(
        "task_deadline",
        "duration",
        "1h",
        "when a task without a deadline of its own ends",
        scopes=SCOPES,
    )
    add(
        "task_retention",
        "duration",
        "30d",
        "how long a task that ended is kept, with its result",
        scopes=SCOPES,
    )
    add(
        "over_selection",
        "float",
        "1.0",
        "devices assigned at a time, as a multiple of the contributions still missing",
        1.0,
        scopes=SCOPES,
    )
    add(
        "max_at_work",
        "int",
        None,
        "devices that may be at work at a time in a population, on all its tasks together",
        1,
        scopes=("population",),
    )
    add(
        "task_max_at_work",
        "int",
        None,
        "devices that may be at work at a time on one task",
        1,
        scopes=SCOPES,
    )
    add(
        "token_keys_file",
        "path",
        None,
        "the file with the keys that sign what devices are given; without one it lies beside the "
        "storage, and is made at the first start",
    )
    text = "what that file says, instead of a file; only from the environment"
    options.add("", "token_keys", "str", None, text, secret=True)
    add_front_options(options)
    add_server_options(options)


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
