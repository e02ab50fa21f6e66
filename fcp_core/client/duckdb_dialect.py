"""Rewrites queries in SQLite's dialect for DuckDB, and refuses what is not in a closed set.

DuckDB types strictly and has other meanings for some of what both have: division of integers,
casts, LIKE, logarithms of what has none. Those are rewritten to macros with SQLite's meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase

from fcp_core.client.sql_engine import refused
from fcp_core.errors import MissingExtraError
from fcp_core.protocol.sql import DISTINCT_CODE, SUMMED_GROUPS, literal_sql
from fcp_core.protocol.status import Code, StatusError

try:
    import sqlglot
    from sqlglot import errors, exp
    from sqlglot.optimizer.scope import traverse_scope
except ModuleNotFoundError:
    raise MissingExtraError("asking DuckDB", "duckdb") from None

#: The longest text that a query may make, in bytes.
_LONGEST = 1 << 20
_INTEGERS = (
    "WHEN 'BIGINT' THEN 'integer' WHEN 'INTEGER' THEN 'integer' WHEN 'SMALLINT' THEN 'integer' "
    "WHEN 'TINYINT' THEN 'integer' WHEN 'HUGEINT' THEN 'integer' WHEN 'UBIGINT' THEN 'integer' "
    "WHEN 'UINTEGER' THEN 'integer' WHEN 'USMALLINT' THEN 'integer' "
    "WHEN 'UTINYINT' THEN 'integer' WHEN 'BOOLEAN' THEN 'integer'"
)


def _once(x: str, sql: str) -> str:
    """Return an expression that has another one under the name of a macro's argument, once.

    A macro puts its arguments wherever they are named, so nested ones would grow exponentially.
    """
    return f"list_transform([{x}], lambda {x}_: {sql})[1]"


def _bounded(sql: str, size: str) -> str:
    """Return an expression for a text that ends the query if it would be too large."""
    for name in ("x_", "y_", "z_"):
        sql, size = (each.replace(name, f"CAST({name} AS VARCHAR)") for each in (sql, size))
    return f"CASE WHEN {size} > {_LONGEST} THEN error('too long') ELSE {sql} END"


#: What SQLite's functions are here.
MACROS = (
    f"""CREATE MACRO fcp_typeof(x) AS CASE WHEN x IS NULL THEN 'null' ELSE
        CASE split_part(typeof(x), '(', 1) {_INTEGERS}
        WHEN 'DOUBLE' THEN 'real' WHEN 'FLOAT' THEN 'real' WHEN 'DECIMAL' THEN 'real'
        WHEN 'BLOB' THEN 'blob' ELSE 'text' END END""",
    """CREATE MACRO fcp_text_literal(x) AS CASE WHEN contains(x, chr(0))
        THEN 'CAST(X''' || hex(x) || ''' AS TEXT)'
        ELSE '''' || replace(x, '''', '''''') || '''' END""",
    "CREATE MACRO fcp_literal(x) AS "
    + _once(
        "x",
        """CASE fcp_typeof(x_) WHEN 'null' THEN 'NULL'
        WHEN 'integer' THEN CAST(TRY_CAST(x_ AS HUGEINT) AS VARCHAR)
        WHEN 'real' THEN fcp_real_literal(TRY_CAST(x_ AS DOUBLE))
        WHEN 'blob' THEN 'X''' || hex(CAST(CAST(x_ AS VARCHAR) AS BLOB)) || ''''
        ELSE fcp_text_literal(CAST(x_ AS VARCHAR)) END""",
    ),
    "CREATE MACRO fcp_quote(x) AS "
    + _once(
        "x",
        """CASE fcp_typeof(x_) WHEN 'real' THEN fcp_real_quote(TRY_CAST(x_ AS DOUBLE))
        ELSE fcp_literal(x_) END""",
    ),
    "CREATE MACRO fcp_integer(x) AS "
    + _once(
        "x",
        """CASE WHEN fcp_typeof(x_) = 'integer' THEN TRY_CAST(x_ AS BIGINT)
        ELSE TRY_CAST(trunc(TRY_CAST(x_ AS DOUBLE)) AS BIGINT) END""",
    ),
    "CREATE MACRO fcp_div(x, y) AS "
    + _once(
        "x",
        _once(
            "y",
            """CASE WHEN fcp_typeof(x_) = 'integer' AND fcp_typeof(y_) = 'integer'
            THEN trunc(x_ / nullif(y_, 0)) ELSE x_ / nullif(y_, 0) END""",
        ),
    ),
    # DuckDB bounds the memory of tables, and not that of a text.
    "CREATE MACRO fcp_concat(x, y) AS "
    + _once("x", _once("y", _bounded("x_ || y_", "strlen(x_) + strlen(y_)"))),
    "CREATE MACRO fcp_replace(x, y, z) AS "
    + _once(
        "x",
        _once(
            "z", _bounded("replace(x_, CAST(y AS VARCHAR), z_)", "strlen(x_) * (1 + strlen(z_))")
        ),
    ),
    # SQLite knows the letters of ASCII only.
    f"CREATE MACRO fcp_upper(x) AS translate(CAST(x AS VARCHAR), '{ascii_lowercase}', "
    f"'{ascii_uppercase}')",
    f"CREATE MACRO fcp_lower(x) AS translate(CAST(x AS VARCHAR), '{ascii_uppercase}', "
    f"'{ascii_lowercase}')",
    "CREATE MACRO fcp_total(x) AS coalesce(CAST(sum(x) AS DOUBLE), 0.0)",
    "CREATE MACRO fcp_ln(x) AS ln(CASE WHEN x > 0 THEN x END)",
    "CREATE MACRO fcp_sqrt(x) AS sqrt(CASE WHEN x >= 0 THEN x END)",
    "CREATE MACRO fcp_code(x) AS fcp_code_of_literal(fcp_literal(x))",
)
#: Functions that both have, with one meaning.
_SAME: tuple[type[exp.Expression], ...] = (
    exp.Abs,
    exp.Avg,
    exp.Case,
    exp.Ceil,
    exp.Coalesce,
    exp.Connector,
    exp.Count,
    exp.Exp,
    exp.Floor,
    exp.Greatest,
    exp.If,
    exp.Least,
    exp.Length,
    exp.Max,
    exp.Min,
    exp.Nullif,
    exp.Pow,
    exp.Round,
    exp.Sign,
    exp.Substring,
    exp.Sum,
    exp.Trim,
)
#: Those that are macros here, by their names in SQLite.
_MACROS = {
    "total": "fcp_total",
    "typeof": "fcp_typeof",
    "quote": "fcp_quote",
    "upper": "fcp_upper",
    "lower": "fcp_lower",
    "ln": "fcp_ln",
    "sqrt": "fcp_sqrt",
    DISTINCT_CODE: "fcp_code",
}
#: All that rewriting makes.
_OURS = frozenset(
    {
        *_MACROS.values(),
        "fcp_literal",
        "fcp_integer",
        "fcp_div",
        "fcp_concat",
        "fcp_replace",
        "fcp_table_of_groups",
        "list",
        "list_value",
    }
)


def rewritten(sql: str, readable: Callable[[str], bool]) -> str:
    """Return a query in DuckDB's dialect.

    :param sql: one SELECT in SQLite's.
    :param readable: whether there is a table of a name, in lower case, that may be read.
    :raises StatusError: INVALID_ARGUMENT for what cannot be understood; PERMISSION_DENIED for what
        does more than reading what may be read, or needs a function that is not in the set.
    """
    try:
        statements = sqlglot.parse(sql, read="sqlite")
    except (errors.ParseError, errors.TokenError, RecursionError) as error:
        raise StatusError(Code.INVALID_ARGUMENT, "the SQL query cannot be read") from error
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise refused("it is no SELECT")
    tree = statements[0]
    _check_tables(tree, readable)
    for node in tree.find_all(exp.TryCast, exp.Anonymous):
        if node.name.lower() not in (*_MACROS, SUMMED_GROUPS) or isinstance(node, exp.TryCast):
            raise _unknown(node)
    tree = tree.transform(_rewrite)
    for node in tree.find_all(exp.Func):
        ours = isinstance(node, exp.Anonymous) and node.name in _OURS
        if not ours and not isinstance(node, (*_SAME, exp.TryCast)):
            raise _unknown(node)
    return str(tree.sql("duckdb"))


def _unknown(node: exp.Expression) -> StatusError:
    name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
    return refused(f"the function {name.lower()!r} is not for it in DuckDB")


def _check_tables(tree: exp.Expression, readable: Callable[[str], bool]) -> None:
    for select in tree.find_all(exp.With):
        if select.args.get("recursive"):
            raise refused("it is recursive")
    for scope in traverse_scope(tree):
        for table in scope.tables:
            source = scope.sources.get(table.alias_or_name)
            if source is not None and not isinstance(source, exp.Table):
                continue  # it is one of the query's own
            plain = isinstance(table.this, exp.Identifier) and not table.args.get("db")
            if not plain or not readable(table.name.lower()):
                raise refused(f"the table {table.name!r} is not for it")
    named = {id(table) for scope in traverse_scope(tree) for table in scope.tables}
    for table in tree.find_all(exp.Table):
        if id(table) not in named:
            raise refused("it reads a table where that is not understood")


def _rewrite(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.Case) and (x := _quoted(node)) is not None:
        return _call("fcp_literal", x.transform(_rewrite))
    if isinstance(node, exp.Div):
        left, right = node.left.transform(_rewrite), node.right.transform(_rewrite)
        return _call("fcp_div", left, right)
    if isinstance(node, exp.DPipe):
        left, right = node.left.transform(_rewrite), node.right.transform(_rewrite)
        return _call("fcp_concat", left, right)
    if isinstance(node, exp.Replace):
        parts = (node.this, node.expression, node.args.get("replacement"))
        return _call("fcp_replace", *(x.transform(_rewrite) for x in parts if x is not None))
    if isinstance(node, exp.Like):
        left, right = node.this.transform(_rewrite), node.expression.transform(_rewrite)
        return exp.ILike(this=left, expression=right)
    if isinstance(node, exp.Cast) and not isinstance(node, exp.TryCast):
        x = node.this.transform(_rewrite)
        if node.to.is_type(*exp.DataType.INTEGER_TYPES):
            return _call("fcp_integer", x)
        if node.to.is_type("double", "float", "real", "text", "varchar"):
            # Where there is no value it is NULL; SQLite would give 0.
            return exp.TryCast(this=x, to=node.to)
        raise refused(f"{node.sql('sqlite')} is not for it in DuckDB")
    if isinstance(node, exp.Anonymous) and node.name.lower() == SUMMED_GROUPS:
        *layout, key = (x.transform(_rewrite) for x in node.expressions[:4])
        numbers = [x.transform(_rewrite) for x in node.expressions[4:]]
        count = exp.Literal.number(len(numbers))
        rows = _call("list", _call("list_value", *(numbers or [count.copy()])))
        return _call("fcp_table_of_groups", *layout, count, _call("list", key), rows)
    if isinstance(node, exp.Func):
        names = [node.name] if isinstance(node, exp.Anonymous) else node.sql_names()
        macro = next((_MACROS[n.lower()] for n in names if n.lower() in _MACROS), None)
        if macro is not None:
            given = node.expressions if isinstance(node, exp.Anonymous) else [node.this]
            if macro == "fcp_total":
                given = [_as_floats(x) for x in given]
            return _call(macro, *(x.transform(_rewrite) for x in given))
    return node


def _as_floats(x: exp.Expression) -> exp.Expression:
    """Return a product of floats for one that may leave 64 bits; a total is a float anyway."""
    if not isinstance(x, exp.Mul):
        return x
    left = exp.TryCast(this=x.left.copy(), to=exp.DataType.build("double"))
    return exp.Mul(this=left, expression=x.right.copy())


def _quoted(node: exp.Case) -> exp.Expression | None:
    """Return what an expression is the literal of, if it is what keys are sent as."""
    quote = node.args.get("default")
    if not isinstance(quote, exp.Anonymous) or quote.name.lower() != "quote":
        return None
    inner = quote.expressions[0] if quote.expressions else None
    x = inner.args.get("default") if isinstance(inner, exp.Case) else None
    if x is None:
        return None
    wanted = sqlglot.parse_one(literal_sql(x.sql("sqlite")), read="sqlite")
    return x if wanted == node else None


def _call(name: str, *arguments: exp.Expression) -> exp.Expression:
    return exp.Anonymous(this=name, expressions=list(arguments))
