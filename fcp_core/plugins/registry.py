"""The options that the core and the plugins declare, and their values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.files import SCOPES, label, normal
from fcp_core.plugins.values import CONVERTERS, convert, format_bytes

#: What may override the options of a kind of thing.
_SCOPES: Mapping[str, tuple[str, ...]] = {
    "aggregator": SCOPES,
    "protocol": SCOPES,
    "selection": SCOPES,
    "eligibility": SCOPES,
}


def variable(section: str, name: str) -> str:
    """Return the name of the environment variable that sets an option."""
    if not section:
        return f"FCP_{name}".upper()
    return f"FCP_{re.sub('[^A-Za-z0-9]', '_', section)}__{name}".upper()


@dataclass(frozen=True)
class Option:
    """A declared option.

    :param section: ``""`` for ``[fcp]``, else the name of what it belongs to.
    :param default: in the form the file would have it; None: not set unless given.
    :param minimum: the smallest number allowed.
    :param secret: never shown; better a path to a file with the secret.
    :param operator_only: a task cannot set it: it is the operator's word against the author's.
    :param scopes: which kinds of section may override it: "population", "task".
    :param declared_by: the plugin, or "fcp".
    :param of: what takes it, by name, if it is one option of several things of a kind.
    :param shared: whether it is such an option in the section of one of them: without a value of
        its own it has that of the kind.
    """

    section: str
    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    secret: bool = False
    operator_only: bool = False
    scopes: tuple[str, ...] = ()
    declared_by: str = "fcp"
    of: tuple[str, ...] = ()
    shared: bool = False

    @property
    def label(self) -> str:
        """Its section and name as in a file: ``[fcp:storage.sqlite] path``."""
        return label(self.section, self.name)

    @property
    def key(self) -> str:
        """Its name with its section's, as ``--set`` takes it: ``storage.sqlite.path``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return variable(self.section, self.name)

    def parse(self, raw: object, origin: str, base: Path) -> Any:
        """Convert and check a raw value.

        :raises UsageError: with the origin, the value and what was expected.
        """
        hint = ""
        try:
            value = convert(self.type, raw, base)
            if self.choices and value not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise ValueError(f"one of {', '.join(self.choices)}")
            if self.minimum is not None and value < self.minimum:
                raise ValueError(f"at least {self.minimum:g}")
        except ValueError as error:
            shown = "***" if self.secret else repr(raw)
            raise UsageError(f"{origin}: {shown} is not {error}.{hint}") from None
        return value


@dataclass(frozen=True)
class OptionValue:
    """An option, its value and where the value came from.

    :param scope: what the value holds for, such as ``population:phones/all``; ``""`` is all.
    """

    option: Option
    value: Any
    origin: str
    scope: str = ""

    def __repr__(self) -> str:
        return f"OptionValue({self.label}: {self.shown!r}, from {self.origin})"

    @property
    def label(self) -> str:
        """The section and the name as in a file."""
        return label(self.scope, self.option.key) if self.scope else self.option.label

    @property
    def shown(self) -> str:
        """The value for a person to read; secrets are hidden."""
        if self.value is None:
            return ""
        if self.option.secret:
            return "***"
        if isinstance(self.value, tuple):
            return ", ".join(self.value)
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if self.option.type == "duration":
            return f"{self.value:g}s"
        if self.option.type == "bytes":
            return format_bytes(self.value)
        return str(self.value)


class OptionRegistry:
    """Collects the options that the core and the plugins declare.

    :param defaults: defaults in place of the declared ones, by the option's key.
    """

    def __init__(self, defaults: Mapping[str, Any] | None = None) -> None:
        self._defaults = dict(defaults or {})
        self._options: dict[tuple[str, str], Option] = {}
        #: Who declares now; the plugin manager sets it.
        self.owner = "fcp"

    def add(
        self,
        section: str,
        name: str,
        type: str,
        default: Any,
        help: str,
        *,
        choices: Sequence[str] = (),
        minimum: float | None = None,
        secret: bool = False,
        operator_only: bool = False,
        scopes: Sequence[str] | None = None,
        of: Sequence[str] = (),
    ) -> None:
        """Declare an option.

        :param section: ``<kind>.<name>`` of the thing it is for, such as ``storage.sqlite``; ``""``
            is the core's own.
        :param name: lower case, words divided by ``_``.
        :param type: str, int, float, bool, duration, bytes, list, path or choice.
        :param default: a value or its text; None if it is not set by default.
        :param choices: the values that a "choice" may have.
        :param operator_only: a task's own options cannot set it.
        :param scopes: which kinds of section may override it; by default "population" and "task"
            for options of aggregators, protocols, selection and eligibility policies, and none
            for others.
        :param of: the names of all that take it, if *section* is a kind alone, such as
            ``selection``: it is one option, set for all of them, or for one in its own section.
        :raises UsageError: if it is declared already, or the type or the default is wrong.
        """
        section, name = normal(section), normal(name).lower()
        default = self._defaults.get(f"{section}.{name}" if section else name, default)
        option = Option(
            section,
            name,
            type,
            default,
            help,
            tuple(choices),
            minimum,
            secret,
            operator_only,
            _SCOPES.get(section.partition(".")[0], ()) if scopes is None else tuple(scopes),
            self.owner,
            tuple(map(normal, of)),
        )
        self._declare(option)
        for each in option.of:
            own = f"{section}.{each}"
            self._declare(replace(option, section=own, default=None, of=(), shared=True))

    def _declare(self, option: Option) -> None:
        where = f"option {option.label} of {self.owner}"
        if option.type not in CONVERTERS or bool(option.choices) != (option.type == "choice"):
            raise UsageError(
                f"{where}: the type must be one of {', '.join(CONVERTERS)}, and only a choice has "
                f"choices; it is {option.type!r} with {len(option.choices)} choices."
            )
        if not set(option.scopes) <= set(SCOPES):
            raise UsageError(f"{where}: scopes are of {', '.join(SCOPES)}, not {option.scopes!r}.")
        other = self._options.get((option.section, option.name))
        if other is not None:
            raise UsageError(f"{where} is declared already, by {other.declared_by}.")
        if option.default is not None:
            option.parse(option.default, f"{where}: default", Path())
        self._options[option.section, option.name] = option

    def __iter__(self) -> Iterator[Option]:
        """Iterate over the options, section by section."""
        return iter(sorted(self._options.values(), key=lambda o: (o.section, o.name)))

    def get(self, section: str, name: str) -> Option | None:
        """Return a declared option, or None."""
        return self._options.get((section, name))

    def option(self, section: str, name: str) -> Option:
        """Return an option that is declared.

        :raises KeyError: if it is not.
        """
        return self._options[section, name]

    def names(self, section: str) -> list[str]:
        """Return the names of a section's options, sorted."""
        return sorted(name for other, name in self._options if other == section)

    def sections(self) -> list[str]:
        """Return the names of the sections that have options, sorted; without the core's."""
        return sorted({section for section, _ in self._options if section})


def did_you_mean(word: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return `` Did you mean X?`` for the known word that is most like *word*, or nothing."""
    candidates = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return f" Did you mean {show(candidates[close[0]])}?" if close else ""
