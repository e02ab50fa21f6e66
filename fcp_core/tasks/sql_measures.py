"""What SQL's aggregates are made of: measures, which devices compute and the server aggregates.

A measure of a group is one number a device; what is asked for, such as an average, is an expression
of measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sqlglot import exp

from fcp_core.errors import UsageError
from fcp_core.protocol import sketches
from fcp_core.tasks.sql_functions import clamp_limits, sqlite

Kind: TypeAlias = Literal["sum", "min", "max", "quantile", "distinct"]

#: How far an approximate quantile may be off, as a share of its value, if nothing is said.
RELATIVE_ERROR = sketches.RELATIVE_ERROR
#: The same under noise, which hides buckets with few values in them.
PRIVATE_ERROR = 0.1
_INTEGER_TYPES = ("INT", "BIGINT", "SMALLINT", "TINYINT", "BOOLEAN")


@dataclass(frozen=True)
class Measure:
    """A number that the server aggregates for each group.

    :param label: its name among the tensors.
    :param sql: what a device selects: for ``sum``, ``min`` and ``max`` an aggregate of its rows,
        else the value of a row.
    :param is_integer: whether it is a sum of integers, or the least or greatest of them.
    :param row_bound: of a sum, what one row of a device adds at most, in magnitude; infinite if
        that is not known, and 0 if all its rows together add 1 at most.
    :param valid: for ``min`` and ``max``, of how many values it is.
    :param quantile: which; for ``quantile``.
    :param relative_error: of that.
    """

    kind: Kind
    label: str
    sql: str
    is_integer: bool = False
    row_bound: float = math.inf
    valid: str = ""
    quantile: float = 0.0
    relative_error: float = RELATIVE_ERROR


#: The number of devices that have rows of a group.
DEVICES = Measure("sum", "DEVICES()", "COUNT(*) > 0", is_integer=True, row_bound=0.0)


class Measures:
    """Turns aggregates into expressions of measures.

    :param types: the types of columns, by their names in lower case.
    :param private: whether noise is to hide what one device sends, so that each measure costs.
    :param masked: whether only sums over devices are seen.
    """

    def __init__(
        self, types: Mapping[str, str], *, private: bool = False, masked: bool = False
    ) -> None:
        self._types = types
        self._private = private
        self._masked = masked
        #: All measures, in their order.
        self.found: list[Measure] = []

    def place(self, measure: Measure) -> exp.Expression:
        """Return what stands for a measure in an expression."""
        if measure not in self.found:
            self.found.append(measure)
        return exp.column(f"m{self.found.index(measure)}")

    def express(self, aggregate: exp.Expression) -> exp.Expression:
        """Return an aggregate as an expression of measures.

        :raises UsageError: if it cannot be one, with what to write instead.
        """
        condition = None
        shown = aggregate.sql("sqlite")
        if isinstance(aggregate, exp.Filter):
            condition, aggregate = aggregate.expression.this, aggregate.this
        if isinstance(aggregate, exp.Anonymous) and aggregate.name.upper() == "DEVICES":
            if condition is not None or aggregate.expressions:
                raise UsageError("DEVICES() counts the devices of a group; it takes nothing.")
            return self.place(DEVICES)
        if isinstance(aggregate.this, exp.Distinct):
            raise _instead(shown, "its DISTINCT", "APPROX_DISTINCT(x)")
        if isinstance(aggregate, exp.Count) and isinstance(aggregate.this, exp.Star):
            if condition is None:
                return self._sum("COUNT(*)", "COUNT(*)", is_integer=True)
            return self._count(_when(condition, exp.Literal.number(1)))
        inner = _argument(aggregate, shown)
        value = inner if condition is None else _when(condition, inner)
        return self._of(aggregate, value, shown)

    def _of(self, aggregate: exp.Expression, x: exp.Expression, shown: str) -> exp.Expression:
        if isinstance(aggregate, exp.Count):
            return self._count(x)
        if _is_total(aggregate):
            return self._total(x)
        if isinstance(aggregate, exp.Sum):
            return self._nullable(x, self._whole(x) if self._is_integer(x) else self._total(x))
        if isinstance(aggregate, exp.Avg):
            text = "CASE WHEN n > 0 THEN s / n END"
            return _formula(text, n=self._count(x), s=self._total(x))
        if isinstance(aggregate, (exp.Min, exp.Max)):
            if not self._private and not self._masked:
                return self._extreme(aggregate.key, x)
            # What can be summed, and have noise, is how many numbers are in each bucket.
            end = float(isinstance(aggregate, exp.Max))
            bucket = Measure("quantile", shown, _sql(x), quantile=end, relative_error=PRIVATE_ERROR)
            return self.place(bucket)
        if isinstance(aggregate, exp.ApproxQuantile):
            error = PRIVATE_ERROR if self._private or self._masked else RELATIVE_ERROR
            return self.place(_quantile(aggregate, _sql(x), shown, error))
        if isinstance(aggregate, exp.ApproxDistinct) and self._masked:
            raise UsageError(
                f"{shown} cannot be summed under masks; write SELECT DISTINCT {x.sql('sqlite')} "
                "and count the rows."
            )
        if isinstance(aggregate, exp.ApproxDistinct):
            return self.place(Measure("distinct", f"APPROX_DISTINCT({_sql(x)})", _sql(x)))
        return self._spread(aggregate, x, shown)

    def _nullable(self, x: exp.Expression, total: exp.Expression) -> exp.Expression:
        """Return a sum, or NULL if there was nothing to sum; under noise nobody knows that."""
        if self._private:
            return total
        return _formula("CASE WHEN n > 0 THEN s END", n=self._count(x), s=total)

    def _spread(self, aggregate: exp.Expression, x: exp.Expression, shown: str) -> exp.Expression:
        """Return a variance, or its root."""
        population = isinstance(aggregate, (exp.VariancePop, exp.StddevPop))
        deviation = isinstance(aggregate, (exp.Stddev, exp.StddevSamp, exp.StddevPop))
        if not population and not deviation and not isinstance(aggregate, exp.Variance):
            raise _unknown(shown)
        square = exp.Mul(this=exp.paren(x.copy()), expression=exp.paren(x.copy()))
        text = f"MAX(q - s * s / n, 0) / NULLIF({'n' if population else 'n - 1'}, 0)"
        found = _formula(
            f"CASE WHEN n > 0 THEN {text} END",
            n=self._count(x),
            s=self._total(x),
            q=self._total(square),
        )
        return exp.func("sqrt", found, dialect="sqlite") if deviation else found

    def _extreme(self, name: str, x: exp.Expression) -> exp.Expression:
        upper, sql = name.upper(), _sql(x)
        count = f"COUNT({sql})"
        measure = Measure(
            "min" if name == "min" else "max",
            f"{upper}({x.sql('sqlite')})",
            f"COALESCE({upper}({sql}), 0)",
            is_integer=self._is_integer(x),
            valid=count,
        )
        return _formula("CASE WHEN n > 0 THEN x END", n=self._count(x), x=self.place(measure))

    def _count(self, x: exp.Expression) -> exp.Expression:
        sql = f"COUNT({_sql(x)})"
        return self._sum(f"COUNT({x.sql('sqlite')})", sql, is_integer=True)

    def _total(self, x: exp.Expression) -> exp.Expression:
        label = f"TOTAL({x.sql('sqlite')})"
        return self._sum(label, f"TOTAL({_sql(x)})", bound=self._bound(x, label))

    def _whole(self, x: exp.Expression) -> exp.Expression:
        label, sql = f"SUM({x.sql('sqlite')})", f"COALESCE(SUM({_sql(x)}), 0)"
        return self._sum(label, sql, is_integer=True, bound=self._bound(x, label))

    def _sum(
        self, label: str, sql: str, *, is_integer: bool = False, bound: float = 1.0
    ) -> exp.Expression:
        return self.place(Measure("sum", label, sql, is_integer, bound))

    def _bound(self, x: exp.Expression, label: str) -> float:
        """Return how much a row adds at most.

        :raises UsageError: if that has to be known, and is not.
        """
        bound = _row_bound(x)
        if (self._private or self._masked) and not bound < math.inf:
            why = (
                "noise can only hide what is bounded"
                if self._private
                else "a sum under masks has room for what is bounded only"
            )
            raise UsageError(
                f"{label}: {why}; write how large a value may be, as "
                f"CLAMP({x.sql('sqlite')}, 0, 100)."
            )
        return bound

    def _is_integer(self, x: exp.Expression) -> bool:
        """Whether all values of an expression are integers, or NULL."""
        if isinstance(x, exp.Literal):
            return not x.is_string and x.name.isdigit()
        if isinstance(x, exp.Column):
            return self._types.get(x.name.lower(), "") == "integer"
        if isinstance(x, (exp.Paren, exp.Neg)):
            return self._is_integer(x.this)
        if isinstance(x, (exp.Add, exp.Sub, exp.Mul)):
            return self._is_integer(x.left) and self._is_integer(x.right)
        if (limits := clamp_limits(x)) is not None:
            whole = all(isinstance(limit, int) for limit in limits)
            return whole and self._is_integer(x.expressions[0])
        if isinstance(x, exp.Cast):
            return x.to.this.name in _INTEGER_TYPES
        if isinstance(x, exp.Case):
            results = [branch.args["true"] for branch in x.args["ifs"]]
            results += [x.args["default"]] if x.args.get("default") is not None else []
            return all(isinstance(r, exp.Null) or self._is_integer(r) for r in results)
        return isinstance(x, (exp.Predicate, exp.And, exp.Or, exp.Not, exp.Boolean, exp.Length))


def is_aggregate(node: exp.Expression) -> bool:
    """Whether a part of an expression is about the rows of a group."""
    if isinstance(node, exp.Anonymous):
        return node.name.upper() in ("DEVICES", "TOTAL")
    if isinstance(node, (exp.Min, exp.Max)) and node.expressions:
        return False  # of several values of one row
    return isinstance(node, (exp.AggFunc, exp.Filter, exp.WithinGroup))


def _row_bound(x: exp.Expression) -> float:
    """Return the largest magnitude of an expression; infinite if that is not known."""
    if isinstance(x, (exp.Predicate, exp.And, exp.Or, exp.Not, exp.Boolean)):
        return 1.0
    if isinstance(x, exp.Literal) and not x.is_string:
        return abs(float(x.name))
    if isinstance(x, exp.Null):
        return 0.0
    if isinstance(x, (exp.Paren, exp.Neg)):
        return _row_bound(x.this)
    if isinstance(x, (exp.Add, exp.Sub)):
        return _row_bound(x.left) + _row_bound(x.right)
    if isinstance(x, exp.Mul):
        bounds = (_row_bound(x.left), _row_bound(x.right))
        return math.inf if math.inf in bounds else bounds[0] * bounds[1]
    if isinstance(x, exp.Case):
        results = [branch.args["true"] for branch in x.args["ifs"]]
        results += [x.args["default"]] if x.args.get("default") is not None else []
        return max(map(_row_bound, results))
    limits = clamp_limits(x)
    return math.inf if limits is None else max(map(abs, limits))


def _is_total(node: exp.Expression) -> bool:
    return isinstance(node, exp.Anonymous) and node.name.upper() == "TOTAL"


def _argument(aggregate: exp.Expression, shown: str) -> exp.Expression:
    if _is_total(aggregate):
        arguments = aggregate.expressions
    else:
        arguments = [aggregate.this, *aggregate.expressions]
    exact = (exp.Median, exp.WithinGroup, exp.PercentileCont, exp.Quantile)
    if isinstance(aggregate, exact) and not isinstance(aggregate, exp.ApproxQuantile):
        raise _instead(shown, "an exact quantile", "APPROX_QUANTILE(x, 0.5)")
    if len(arguments) != 1 or not isinstance(arguments[0], exp.Expression):
        raise _unknown(shown)
    (x,) = arguments
    inside = next((node for node in x.walk() if is_aggregate(node)), None)
    if inside is not None:
        raise UsageError(f"{shown}: it has another aggregate, {inside.sql('sqlite')}, in it.")
    return x


def _quantile(aggregate: exp.ApproxQuantile, sql: str, shown: str, usual: float) -> Measure:
    numbers = [aggregate.args.get(name) for name in ("quantile", "accuracy")]
    try:
        given = [None if node is None else float(node.name) for node in numbers]
    except ValueError:
        raise UsageError(f"{shown}: the quantile and its error must be written numbers.") from None
    quantile, error = given
    error = usual if error is None else error
    if quantile is None or not 0 <= quantile <= 1:
        raise UsageError(f"{shown}: the quantile must be a number from 0 to 1.")
    try:
        sketches.check_relative_error(error)
    except ValueError as problem:
        raise UsageError(f"{shown}: {problem}.") from None
    return Measure("quantile", shown, sql, quantile=quantile, relative_error=error)


def _when(condition: exp.Expression, x: exp.Expression) -> exp.Expression:
    return exp.Case().when(condition.copy(), x.copy())


def _formula(text: str, **parts: exp.Expression) -> exp.Expression:
    """Return a formula with expressions in place of its names."""
    formula = exp.maybe_parse(text, dialect="sqlite")

    def fill(node: exp.Expression) -> exp.Expression:
        found = parts.get(node.name) if isinstance(node, exp.Column) else None
        return node if found is None else found.copy()

    return exp.paren(formula.transform(fill))


def _sql(x: exp.Expression) -> str:
    return sqlite(x)


def _instead(shown: str, what: str, better: str) -> UsageError:
    return UsageError(
        f"{shown}: {what} would need every value of every device; write {better} instead."
    )


def _unknown(shown: str) -> UsageError:
    return UsageError(
        f"{shown} cannot be aggregated over devices; there is COUNT, SUM, TOTAL, AVG, MIN, MAX, "
        "VAR_POP, VAR_SAMP, STDDEV_POP, STDDEV_SAMP, APPROX_QUANTILE(x, q), APPROX_DISTINCT(x) and "
        "DEVICES()."
    )
