"""Reads an SQL query and finds its keys, its measures and what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import errors, exp
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers

from fcp_core.errors import UsageError
from fcp_core.protocol.sql import literal_sql
from fcp_core.tasks.sql_functions import sqlite
from fcp_core.tasks.sql_measures import DEVICES, Measure, Measures, is_aggregate
from fcp_core.tasks.sql_question import Question

#: Parts of a SELECT that would need the rows of all devices in one place.
_CLAUSES = {
    "windows": "WINDOW",
    "qualify": "QUALIFY",
    "laterals": "LATERAL",
    "into": "INTO",
    "sample": "TABLESAMPLE",
    "distribute": "DISTRIBUTE BY",
    "sort": "SORT BY",
    "cluster": "CLUSTER BY",
    "locks": "FOR UPDATE",
    "match": "MATCH_RECOGNIZE",
}


@dataclass(frozen=True)
class Key:
    """What rows are grouped by.

    :param label: its name among the tensors.
    :param sql: what a device selects: the value as an SQL literal, so that NULL, numbers, text and
        bytes are told apart.
    """

    label: str
    sql: str


#: What a query without groups is grouped by if devices are counted: a device without rows has no
#: part of it.
ALL_ROWS = Key("all rows", "'1'")


@dataclass(frozen=True)
class Parsed:
    """The parts of a query.

    :param with_sql: the WITH clause, if any, for devices.
    :param from_sql: the FROM and WHERE clauses, for devices.
    :param names: the names of the columns that are shown.
    :param shown_sql: a SELECT of the row's number and of them, from a table ``r`` with the keys,
        ``k0`` and so on, and the measures, ``m0`` and so on.
    :param all_sql: the same for all rows, in any order.
    :param min_devices: only groups of at least so many devices are wanted; None: all.
    """

    keys: Sequence[Key]
    measures: Sequence[Measure]
    with_sql: str
    from_sql: str
    names: Sequence[str]
    shown_sql: str
    all_sql: str
    min_devices: int | None


def parse(query: Question) -> Parsed:
    """Read a query.

    :raises UsageError: if it cannot be answered by devices and a server, naming the clause.
    """
    try:
        return _Reader(_select(query.sql), query).read()
    except RecursionError:
        raise UsageError(
            "the query is nested too deeply; write it with fewer parentheses."
        ) from None


def _select(sql: str) -> exp.Select:
    try:
        statements = [each for each in sqlglot.parse(sql, read="sqlite") if each is not None]
    except (errors.ParseError, errors.TokenError) as error:
        where = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"the query cannot be read as SQL: {where}.") from None
    if len(statements) != 1:
        raise UsageError(f"a query is one SELECT; here are {len(statements)} statements.")
    (statement,) = statements
    if isinstance(statement, exp.SetOperation):
        raise UsageError(
            f"{statement.key.upper()} of two aggregations cannot be asked for; ask twice, or write "
            "it inside FROM."
        )
    if not isinstance(statement, exp.Select):
        raise UsageError(f"a query is a SELECT, not {statement.key.upper()}.")
    return statement


class _Reader:
    def __init__(self, select: exp.Select, query: Question) -> None:
        self._names = [item.alias_or_name or item.sql("sqlite") for item in select.expressions]
        # SQLite does not tell upper case from lower case in names.
        self._select = select = normalize_identifiers(select, dialect="sqlite")
        self._measures = Measures(
            {name.lower(): kind.lower() for name, kind in query.types.items()},
            private=query.epsilon is not None,
            masked=query.masked,
        )
        self._items = [item.unalias() for item in select.expressions]
        self._aliases = {
            item.alias.lower(): item.unalias() for item in select.expressions if item.alias
        }
        self._keys: list[exp.Expression] = []
        self._min_devices, self._private = query.min_devices, query.epsilon is not None

    def read(self) -> Parsed:
        self._check_clauses()
        self._keys = self._grouped()
        shown = [self._lift(item, "SELECT") for item in self._items]
        minimum, having = self._having()
        everything = exp.select(
            "rowid", *(exp.alias_(item, f"s{place}") for place, item in enumerate(shown))
        ).from_("r")
        final = everything
        if having is not None:
            final = final.where(having)
        for ordered in self._ordered():
            final = final.order_by(ordered)
        for name in ("limit", "offset"):
            if self._select.args.get(name) is not None:
                final = final.copy()
                final.set(name, self._select.args[name].copy())
        measures = self._measures.found or [DEVICES]
        keys = [_key(key) for key in self._keys]
        if not keys and (minimum or self._min_devices) and not self._private:
            keys = [ALL_ROWS]
        return Parsed(
            keys=keys,
            measures=measures,
            with_sql=self._with(),
            from_sql=self._from(),
            names=self._names,
            shown_sql=sqlite(final),
            all_sql=sqlite(everything),
            min_devices=minimum,
        )

    def _check_clauses(self) -> None:
        select = self._select
        for name, clause in _CLAUSES.items():
            if select.args.get(name):
                raise UsageError(f"{clause} cannot be answered over devices; leave it out.")
        if select.args.get("from_") is None:
            raise UsageError("the query has no FROM: which table of the devices is it about?")
        for item in select.expressions:
            if isinstance(item.unalias(), exp.Star) or item.is_star:
                raise UsageError(
                    f"SELECT {item.sql('sqlite')}: rows stay on the devices; name columns that are "
                    "grouped by, and aggregates."
                )
        for node in select.find_all(exp.Placeholder, exp.Parameter, exp.Identifier):
            if isinstance(node, exp.Identifier) and (node.quoted or not node.name.startswith("$")):
                continue
            raise UsageError(f"{node.sql('sqlite')} has no value; write the value into the query.")
        distinct = select.args.get("distinct")
        if distinct is not None and (distinct.args.get("on") or select.args.get("group")):
            raise UsageError("DISTINCT goes neither with ON nor with GROUP BY; leave it out.")
        if (found := select.args.get("with_")) is not None and found.args.get("recursive"):
            raise UsageError("WITH RECURSIVE is not run on devices.")

    def _grouped(self) -> list[exp.Expression]:
        group = self._select.args.get("group")
        if group is None:
            if self._select.args.get("distinct") is None:
                return []
            return self._items
        for name, value in group.args.items():
            if name != "expressions" and value:
                raise _grouping(name.replace("_", " ").upper())
        keys = []
        for given in group.expressions:
            key = self._resolve(given, "GROUP BY")
            if isinstance(key, (exp.Rollup, exp.Cube, exp.GroupingSets)) or (
                isinstance(key, exp.Anonymous) and key.name.upper() in ("ROLLUP", "CUBE")
            ):
                raise _grouping(key.sql("sqlite"))
            found = next((node for node in key.walk() if is_aggregate(node)), None)
            if found is not None:
                raise UsageError(f"GROUP BY has an aggregate, {found.sql('sqlite')}, in it.")
            if key not in keys:
                keys.append(key)
        return keys

    def _resolve(self, given: exp.Expression, clause: str) -> exp.Expression:
        """Return what a number or an alias stands for."""
        number = given.this if isinstance(given, exp.Neg) else given
        if isinstance(number, exp.Literal) and not number.is_string:
            place = int(given.name) if given is number and given.name.isdigit() else 0
            if not 1 <= place <= len(self._items):
                shown = given.sql("sqlite")
                raise UsageError(f"{clause} {shown}: there is no such column in the SELECT.")
            return self._items[place - 1]
        if isinstance(given, exp.Column) and not given.table:
            alias = self._aliases.get(given.name.lower(), given)
            # In GROUP BY a column wins over an alias of its name; here it is one that there is.
            if clause == "GROUP BY" and given in alias.find_all(exp.Column):
                return given
            return alias
        return given

    def _lift(self, item: exp.Expression, clause: str) -> exp.Expression:
        """Return an expression of keys and measures."""

        def lift(node: exp.Expression) -> exp.Expression:
            if node in self._keys:
                return exp.column(f"k{self._keys.index(node)}")
            if isinstance(node, exp.Window):
                raise UsageError(
                    f"{node.sql('sqlite')}: a window needs the rows of all devices; leave OVER out."
                )
            if isinstance(node, (exp.Subquery, exp.Select, exp.Exists)):
                raise UsageError(
                    f"{clause} has a subquery, {node.sql('sqlite')}; devices run subqueries "
                    "only in FROM, in WHERE and inside of aggregates."
                )
            if is_aggregate(node):
                return self._measures.express(node)
            if isinstance(node, exp.Column):
                alias = self._aliases.get(node.name.lower())
                if clause != "SELECT" and alias is not None and not node.table:
                    return self._lift(alias, "SELECT")
                raise UsageError(
                    f"{clause}: {node.sql('sqlite')} is neither in GROUP BY nor in an aggregate."
                )
            return node

        return item.copy().transform(lift)

    def _having(self) -> tuple[int | None, exp.Expression | None]:
        """Return the minimum of devices, and what else groups must be like."""
        having = self._select.args.get("having")
        if having is None:
            return None, None
        minimum = None
        others = []
        for condition in (
            having.this.flatten() if isinstance(having.this, exp.And) else [having.this]
        ):
            count = _least_devices(condition)
            if count is None:
                others.append(self._lift(condition, "HAVING"))
            else:
                minimum = max(minimum or 1, count)
        return minimum, exp.and_(*others) if others else None

    def _ordered(self) -> list[exp.Expression]:
        order = self._select.args.get("order")
        ordered = []
        for given in () if order is None else order.expressions:
            item = given.copy()
            item.set("this", self._lift(self._resolve(given.this, "ORDER BY"), "ORDER BY"))
            ordered.append(item)
        return ordered

    def _with(self) -> str:
        found = self._select.args.get("with_")
        return "" if found is None else f"{sqlite(found)} "

    def _from(self) -> str:
        parts = [self._select.args["from_"], *self._select.args.get("joins", ())]
        text = " ".join(sqlite(part).strip() for part in parts)
        where = self._select.args.get("where")
        return text if where is None else f"{text} {sqlite(where).strip()}"


def _grouping(what: str) -> UsageError:
    return UsageError(f"GROUP BY {what} cannot be answered; ask once for each grouping.")


def _least_devices(condition: exp.Expression) -> int | None:
    """Return k if a condition is ``DEVICES() >= k``."""
    left, right = condition.args.get("this"), condition.args.get("expression")
    is_count = isinstance(left, exp.Anonymous) and left.name.upper() == "DEVICES"
    if not is_count or not isinstance(right, exp.Literal) or not right.name.isdigit():
        return None
    if isinstance(condition, exp.GTE):
        return max(1, int(right.name))
    return int(right.name) + 1 if isinstance(condition, exp.GT) else None


def _key(key: exp.Expression) -> Key:
    sql = sqlite(key)
    return Key(key.sql("sqlite"), literal_sql(sql))
