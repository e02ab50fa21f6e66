"""What was given before the name of a command: the configuration and the plugins it loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcp_core.plugins.loading import Commands
    from fcp_core.plugins.manager import Plugins
    from fcp_core.plugins.tracing import TraceSink


@dataclass
class Invocation:
    """What was given before the command's name; a command finds it in ``ctx.obj``.

    :param config_file: the argument of ``--config``.
    :param overrides: the arguments of ``--set``, by dotted name.
    """

    config_file: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    _plugins: Plugins | None = field(default=None, repr=False)
    _commands: Commands | None = field(default=None, repr=False)

    def load_plugins(
        self,
        *,
        extra: Iterable[object] = (),
        overrides: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        trace: TraceSink | None = None,
    ) -> Plugins:
        """Load the plugins and the configuration as the command line says.

        :param extra: further plugin objects.
        :param overrides: the command's own options; they win over ``--set``.
        :param defaults: the command's own defaults; everything wins over them.
        :param modules: modules or files to load as if ``[fcp] plugins`` named them too.
        :param trace: called with every hook call.
        :raises UsageError: if anything about them is wrong.
        """
        from fcp_core.plugins.manager import Plugins

        return Plugins.load(
            config_file=self.config_file,
            overrides={**self.overrides, **(overrides or {})},
            overrides_origin="the command line",
            defaults=defaults,
            extra=extra,
            modules=modules,
            trace=trace,
        )

    @property
    def plugins(self) -> Plugins:
        """The plugins without any extra; loaded once."""
        if self._plugins is None:
            self._plugins = self.load_plugins()
        return self._plugins

    @property
    def plugin_commands(self) -> Commands:
        """The commands of plugins; loaded once, and without what else the plugins offer.

        :raises UsageError: if a plugin cannot be imported or its commands cannot be had.
        """
        if self._commands is None:
            from fcp_core.plugins.loading import Commands, load_commands

            self._commands = load_commands(config_file=self.config_file, overrides=self.overrides)
            if self._commands is None:
                offers = self.plugins.offers()
                owners = {o.name: o.plugin for o in offers if o.kind == "command"}
                self._commands = Commands(self.plugins.commands, owners)
        return self._commands


def refuse_uninstalled(name: str) -> None:
    """Refuse a command that a distribution of ours would bring.

    :param name: as the plugin calls it: ``tasks-report`` for ``fcp tasks report``.
    :raises UsageError: saying what to install.
    """
    from fcp_core.errors import UsageError
    from fcp_core.plugins.choices import ELSEWHERE

    source = ELSEWHERE.get(("command", name))
    if source is not None:
        shown = name.replace("-", " ")
        raise UsageError(f"'fcp {shown}' comes with {source}: pip install {source}.")
