"""The hooks of fcp: what a plugin may implement. ``docs/hooks.md`` is made from this file.

A plugin is a module (or any object) named by an entry point of the group ``fcp``, or in
``[fcp] plugins``. It marks its functions with ``fcp_core.plugins.hookimpl`` and takes those of a
hook's arguments that it wants. If it is a class, every server makes one of its own: that is where
a plugin keeps what it learns in ``fcp_startup``.

There are four kinds of hook, which differ in what is done with the answers: *registration* collects
factories, *claim* stops at the first answer that is not None, *veto* lets any refusal win,
*observer* ignores what is returned. Only claims can be wrapped; all others are called plugin by
plugin. ``tryfirst`` ones come first, then the others in the order of the plugins' names.

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
    from fcp_core.plugins.config import Config, OptionRegistry
    from fcp_core.plugins.pages import PagesFactory
    from fcp_core.rounds.events import Event
    from fcp_core.rounds.ledger import Ledger
    from fcp_core.rounds.policies import (
        CheckIn,
        EligibilityPolicyFactory,
        Refusal,
        RetryWindow,
        SelectionPolicyFactory,
    )
    from fcp_core.rounds.protocols import AggregationProtocolFactory
    from fcp_core.rounds.tasks import TaskSpec
    from fcp_core.storage.contract import StorageFactory

#: The integer that a plugin module may carry as ``fcp_api_version``; absent means 1.
API_VERSION = 1

hookspec = pluggy.HookspecMarker("fcp")
hookimpl = pluggy.HookimplMarker("fcp")


@hookspec
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the plugin's configuration options.

    Registration; once for each ``Plugins.load``, after all plugins are imported and before any
    other hook. The configuration has not been read yet.

    :param options: takes ``options.add(section, name, type, default, help)``; the section is the
        name of the thing that the option is for, such as ``storage.sqlite``.
    :raises Exception: stops the start-up, with the plugin's name; so does an option that is
        declared twice.

    .. versionadded:: 0.1

    Example: ``fcp_aggregators.plugin``
    """


@hookspec
def fcp_register_aggregators(config: Config) -> Iterable[AggregatorFactory]:  # type: ignore[empty-body]
    """Return the aggregators that the plugin offers.

    Registration; once for each ``Plugins.load``. Two aggregators of one name, from whichever
    plugins, stop the start-up.

    :param config: the whole configuration; read ``config.section(...)`` of your own sections.
    :returns: a list of ``AggregatorFactory``; an empty one is fine.
    :raises UsageError: if an option of the plugin has a value that will not do; stops the start-up.

    .. versionadded:: 0.1

    Example: ``fcp_aggregators.plugin``
    """


@hookspec
def fcp_register_aggregation_protocols(  # type: ignore[empty-body]
    config: Config,
) -> Iterable[AggregationProtocolFactory]:
    """Return the aggregation protocols that the plugin offers.

    Registration; once for each ``Plugins.load``.

    :param config: as for aggregators.
    :returns: a list of ``AggregationProtocolFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_aggregators.plugin``
    """


@hookspec
def fcp_register_selection_policies(config: Config) -> Iterable[SelectionPolicyFactory]:  # type: ignore[empty-body]
    """Return the selection policies that the plugin offers.

    Registration; once for each ``Plugins.load``. The policies themselves are called without hooks.

    :param config: as for aggregators.
    :returns: a list of ``SelectionPolicyFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_plugins.plugin``
    """


@hookspec
def fcp_register_eligibility_policies(config: Config) -> Iterable[EligibilityPolicyFactory]:  # type: ignore[empty-body]
    """Return the eligibility policies that the plugin offers.

    Registration; once for each ``Plugins.load``. The policies themselves are called without hooks.

    :param config: as for aggregators.
    :returns: a list of ``EligibilityPolicyFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_plugins.plugin``
    """


@hookspec
def fcp_register_storages(config: Config) -> Iterable[StorageFactory]:  # type: ignore[empty-body]
    """Return the storage back ends that the plugin offers.

    Registration; once for each ``Plugins.load``. Nothing is opened before the server starts.

    :param config: as for aggregators.
    :returns: a list of ``StorageFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_plugins.plugin``
    """


@hookspec
def fcp_register_engines(config: Config) -> Iterable[EngineFactory]:  # type: ignore[empty-body]
    """Return the aggregation engines that the plugin offers.

    Registration; once for each ``Plugins.load``. Nothing is started before the server starts.

    :param config: as for aggregators.
    :returns: a list of ``EngineFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_aggregators.plugin``
    """


@hookspec
def fcp_register_ledgers(config: Config) -> Iterable[Ledger]:  # type: ignore[empty-body]
    """Return the ledgers that guard what is released from the server.

    Registration; once for each ``Plugins.load``. All ledgers are asked about every task: when it is
    submitted, and in the transaction that ends it, if its result has noise.

    :param config: as for aggregators.
    :returns: a list of :class:`fcp_core.rounds.ledger.Ledger`.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_privacy.plugin``
    """


@hookspec
def fcp_register_commands(config: Config) -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Return subcommands of ``fcp``.

    Registration; once for each ``Plugins.load``, and whenever the command line lists its commands:
    import late what is heavy. It is asked before there is a configuration, unless it wants to see
    that. A command finds the command line's own options in ``ctx.obj``, a
    ``fcp_core.commands.main.Invocation``.

    :param config: as for aggregators.
    :returns: a list of ``click.Command``; the name of one of fcp's own commands is an error.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.1

    Example: ``fcp_platform.plugin``
    """


@hookspec
def fcp_register_pages(config: Config) -> Iterable[PagesFactory]:  # type: ignore[empty-body]
    """Return the pages that the plugin offers, for a browser or a program of an operator.

    Registration; once for each ``Plugins.load``. ``[fcp] pages`` says which are served, where the
    admin API is; without an admin token there are none.

    :param config: as for aggregators.
    :returns: a list of ``fcp_core.plugins.pages.PagesFactory``.
    :raises UsageError: as for aggregators.

    .. versionadded:: 0.2

    Example: ``fcp_dashboard.plugin``
    """


@hookspec(firstresult=True)
def fcp_authenticate(
    method: str,
    path: str,
    headers: Mapping[str, str],
    peer: str,
    certificate: Mapping[str, Any] | None,
) -> str | None:
    """Say who sends a request.

    Claim; once a protocol request, before its body is read, on the event loop: be quick. The first
    answer that is not None counts. If no plugin answers, the request is anonymous and allowed.

    :param method: GET or POST.
    :param path: the request's path without its query. It may hold a token: do not log it.
    :param headers: the request's headers, names in lower case.
    :param peer: the address the request came from.
    :param certificate: the client's TLS certificate as ``ssl.SSLSocket.getpeercert`` returns it, if
        there is one that ``client_ca`` vouches for.
    :returns: a name for the sender, or None if the request is not this plugin's to judge. Later
        requests of a device session must come from the same sender.
    :raises StatusError: UNAUTHENTICATED or PERMISSION_DENIED if it is this plugin's to judge, and
        is refused. Any other exception is logged, and the request answered UNAVAILABLE.

    .. versionadded:: 0.1

    Example: ``fcp_plugins.api_keys``
    """


@hookspec(firstresult=True)
def fcp_retry_window(
    population: str,
    accepted: bool,
    load: Mapping[str, Any],
    now: float,
    pacing: Mapping[str, Mapping[str, Any]],
) -> RetryWindow | None:
    """Say when a device should come back.

    Claim; twice a check-in, on the event loop: be quick. The first answer that is not None counts.
    If no plugin answers, the window is ``retry_min`` to ``retry_max`` of the configuration. Where
    all sections ``[fcp:pacing.NAME]`` of a plugin have an option ``enabled`` that is off, it is not
    asked.

    :param population: the population that the device checks in to.
    :param accepted: whether the window is for a device that was given work.
    :param load: ``open_tasks``, ``missing`` (contributions wanted now), ``needs`` (the same,
        remembered for some minutes), ``waiting`` (candidates), ``check_in_rate`` (a second, over
        the last minute), ``population_size`` (an estimate), ``pace``, the account behind the last
        two, a :class:`fcp_core.rounds.pacing.Pace`, to ask but not to change, and ``not_before``
        (seconds before which selection policies want no device that they send away back).
    :param now: the time, in seconds since 1970.
    :param pacing: the options of each section ``[fcp:pacing.NAME]``, by NAME, as they hold for the
        population.
    :returns: a window, or None to leave it to the next plugin.
    :raises Exception: is logged; the window of the configuration is used.

    .. versionadded:: 0.1

    Example: ``fcp_plugins.plugin``
    """


@hookspec
def fcp_admit_checkin(check_in: CheckIn, now: float) -> Refusal | None:
    """Refuse a device at check-in, for instance by its version or its attestation.

    Veto: any refusal wins; once a check-in, and once more when the device asks for
    tasks with an attestation, on the event loop: be quick. The device gets no
    reason; the longest retry window of all refusals is sent at the check-in.

    :param check_in: what the device says of itself; with a ``session_id`` once it asks for tasks,
        and then ``attestation_measurement`` is bound to that.
    :param now: the time, in seconds since 1970.
    :returns: a refusal, or None.
    :raises Exception: is logged and counts as a refusal.

    .. versionadded:: 0.1

    Example: ``fcp_admission.plugin``
    """


@hookspec
def fcp_check_task(task: TaskSpec) -> Iterable[str] | None:
    """Say what is wrong with a task before it is offered.

    Veto: any problem refuses the task; once for each task that is submitted, on the event loop.

    :param task: the task as its author submitted it. Do not change it.
    :returns: problems, one sentence each, or None; those of all plugins are shown together.
    :raises Exception: is logged and counts as a problem.

    .. versionadded:: 0.1

    Example: ``fcp_robust.plugin``
    """


@hookspec
def fcp_event(event: Event) -> None:
    """Observe an event.

    Observer; once an event, several times for each device, on the event loop: be quick, and do
    no input or output here. What is returned is ignored.

    :param event: one of the frozen dataclasses of ``fcp_core.rounds.events``. None of them carries
        what identifies a device.
    :raises Exception: is logged, and changes nothing else.

    .. versionadded:: 0.1

    Example: ``fcp_webhook.plugin``
    """


@hookspec
def fcp_startup(config: Config) -> Awaitable[None] | None:
    """Prepare.

    Life cycle; once, on the event loop, before the storage is opened and before the first request.
    May be ``async``. Plugins start one after the other. A server of several processes has the
    plugins in each, and each calls this once; the storage is opened in the first only.

    :param config: as for aggregators.
    :returns: None, or an awaitable that the server awaits.
    :raises Exception: stops the server; the plugins that have started are shut down.

    .. versionadded:: 0.1

    Example: ``fcp_webhook.plugin``
    """


@hookspec
def fcp_shutdown() -> Awaitable[None] | None:
    """Clean up.

    Life cycle; once, on the event loop, after the last request and after the storage is closed. May
    be ``async``. Plugins stop in the reverse order. Each process of a server calls it.

    :returns: None, or an awaitable that the server awaits.
    :raises Exception: is logged; the others are shut down all the same.

    .. versionadded:: 0.1

    Example: ``fcp_webhook.plugin``
    """
