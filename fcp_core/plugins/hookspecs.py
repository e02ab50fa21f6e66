"""The hooks of fcp: what a plugin may implement. This file is their reference.

A plugin is a module (or any object) named by an entry point of the group ``fcp``, or in
``[fcp] plugins``. It marks its functions with ``fcp_core.plugins.hookimpl`` and takes those of a
hook's arguments that it wants. If it is a class, every server makes one of its own: that is where
a plugin keeps what it learns in ``fcp_startup``.

There are four kinds of hook, told apart by what is done with the answers: *registration* collects
factories, *claim* stops at the first answer that is not None, *veto* lets any refusal win,
*observer* ignores what is returned. Only claims can be wrapped; all others are called plugin by
plugin, ``tryfirst`` ones first, then in the order of the plugins' names.

Hooks run when the server starts, when a task is made, and once a request at most; never once a
tensor. Only ``fcp_startup`` and ``fcp_shutdown`` may return an awaitable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import click

    from fcp_core.aggregation.aggregator import AggregatorFactory
    from fcp_core.aggregation.engine import EngineFactory
    from fcp_core.aggregation.protocol import AggregationProtocolFactory
    from fcp_core.plugins.config import Config, OptionRegistry
    from fcp_core.rounds.events import Event
    from fcp_core.rounds.policies import (
        CheckIn,
        EligibilityPolicyFactory,
        Refusal,
        RetryWindow,
        SelectionPolicyFactory,
    )
    from fcp_core.rounds.tasks import TaskSpec
    from fcp_core.storage.contract import StorageFactory

#: The integer that a plugin module may carry as ``fcp_api_version``; absent means 1.
API_VERSION = 1

hookspec = pluggy.HookspecMarker("fcp")
hookimpl = pluggy.HookimplMarker("fcp")


@hookspec
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the plugin's configuration options. Registration; once, before any other hook.

    :param options: ``options.add(section, name, type, default, help)``; the section is the name of
        the thing that the option is for, such as ``storage.sqlite``.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_aggregators(config: Config) -> Iterable[AggregatorFactory]:  # type: ignore[empty-body]
    """Return the aggregators that the plugin offers. Registration; once, at start-up.

    Two aggregators of one name, from whichever plugins, stop the start-up.

    :param config: the plugin's own options.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_aggregation_protocols(  # type: ignore[empty-body]
    config: Config,
) -> Iterable[AggregationProtocolFactory]:
    """Return the aggregation protocols that the plugin offers. Registration; once, at start-up.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_selection_policies(config: Config) -> Iterable[SelectionPolicyFactory]:  # type: ignore[empty-body]
    """Return the selection policies that the plugin offers. Registration; once, at start-up.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_eligibility_policies(config: Config) -> Iterable[EligibilityPolicyFactory]:  # type: ignore[empty-body]
    """Return the eligibility policies that the plugin offers. Registration; once, at start-up.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_storages(config: Config) -> Iterable[StorageFactory]:  # type: ignore[empty-body]
    """Return the storage back ends that the plugin offers. Registration; once, at start-up.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_engines(config: Config) -> Iterable[EngineFactory]:  # type: ignore[empty-body]
    """Return the aggregation engines that the plugin offers. Registration; once, at start-up.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_register_commands(config: Config) -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Return subcommands of ``fcp``. Registration; once, when the command line starts: import late.

    A command finds the command line's own options in ``ctx.obj``, a ``fcp_core.cli.Invocation``.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def fcp_authenticate(method: str, path: str, headers: Mapping[str, str], peer: str) -> str | None:
    """Say who sends a request. Claim; once a protocol request, on the event loop: be quick.

    :param headers: the request's headers, names in lower case.
    :param peer: the address the request came from.
    :returns: a name for the sender, or None if the request is not this plugin's to judge.
    :raises StatusError: UNAUTHENTICATED or PERMISSION_DENIED if it is, and is refused. If no
        plugin answers, the request is anonymous and allowed.

    .. versionadded:: 0.1
    """


@hookspec(firstresult=True)
def fcp_retry_window(
    population: str, accepted: bool, load: Mapping[str, Any], now: float
) -> RetryWindow | None:
    """Say when a device should come back. Claim; twice a check-in.

    If no plugin answers, the window is ``retry_min`` to ``retry_max`` of ``[fcp]``.

    :param accepted: whether the window is for a device that was given work.
    :param load: ``open_tasks``, ``missing`` (contributions wanted), ``waiting`` (candidates),
        ``check_in_rate`` (a second, over the last minute).
    :returns: a window, or None to leave it to the next plugin.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_admit_checkin(check_in: CheckIn, now: float) -> Refusal | None:
    """Refuse a device at check-in, for instance by its attestation. Veto: any refusal wins.

    The longest retry window of all refusals is sent. An exception counts as a refusal.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_check_task(task: TaskSpec) -> Iterable[str] | None:
    """Say what is wrong with a task before it is offered. Veto; once a task.

    :returns: problems, one sentence each; all plugins' problems are shown together.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_event(event: Event) -> None:
    """Be told of an event. Observer; on the event loop: be quick. A failure changes nothing.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_startup(config: Config) -> Awaitable[None] | None:
    """Prepare. Life cycle; once, before the first request; a failure stops the server.

    .. versionadded:: 0.1
    """


@hookspec
def fcp_shutdown() -> Awaitable[None] | None:
    """Clean up. Life cycle; once, after the last request; a failure is logged.

    .. versionadded:: 0.1
    """
