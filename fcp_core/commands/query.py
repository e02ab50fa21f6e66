"""``fcp query``: a question in SQL to the devices of a population."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.course import show_course
from fcp_core.commands.output import make_table, print_data, print_tables, write_file
from fcp_core.commands.tasks import FILE, admin_options, connect, connected
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.tasks.sql_query import SqlQuery
    from fcp_core.tasks.tables import Table

#: The options that say how private the answer is.
_PRIVATE = ("min_devices", "epsilon", "delta", "max_groups", "max_rows", "capacity", "key_bytes")
_FORMATS = {"csv": ".csv", "json": ".json", "parquet": ".parquet", "plot": ".svg"}


@click.command()
@click.argument("sql")
@click.option("--population", required=True, help="The population whose devices are asked.")
@click.option("--goal", type=int, required=True, help="How many devices' answers are enough.")
@click.option("--minimum", type=int, help="How many are enough at the deadline [default: --goal].")
@click.option("--deadline", type=float, help="Seconds after which there is no more waiting.")
@click.option("--name", default="query", show_default=True, help="The task's name.")
@click.option("--collection", help="The URI of the collection with the tables.")
@click.option("--integer", "integers", multiple=True, help="A column of integers; may be repeated.")
@click.option("--min-devices", type=int, help="Show only groups of at least so many devices.")
@click.option("--epsilon", type=float, help="What the answer may cost a device; adds noise.")
@click.option("--delta", type=float, help="The same [default: 1e-8].")
@click.option("--max-groups", type=int, help="With noise: groups of a device [default: 10].")
@click.option("--max-rows", type=int, help="With noise or masks: its rows in a group.")
@click.option("--masked", is_flag=True, help="Ask for sums under masks (secure aggregation).")
@click.option("--protocol", help="The aggregation protocol [default: the population's].")
@click.option("--capacity", type=int, help="Under masks: groups of all devices [default: 1000].")
@click.option("--key-bytes", type=int, help="Under masks: the longest key [default: 48].")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", *_FORMATS]),
    help="How the answer is shown [default: as the name of --output says, or a table].",
)
@click.option("-o", "--output", type=FILE, help="A file for the answer.")
@click.option("--explain", is_flag=True, help="Say what devices and the server would do; ask none.")
@admin_options
@click.pass_obj
def query(
    invocation: Any,
    /,
    sql: str,
    population: str,
    goal: int,
    minimum: int | None,
    deadline: float | None,
    name: str,
    protocol: str | None,
    collection: str | None,
    integers: tuple[str, ...],
    shape: str | None,
    output: Path | None,
    explain: bool,
    **more: Any,
) -> None:
    """Ask the devices of a population a question in SQL, and show the answer.

    Each device answers from its own tables; the server aggregates the answers, and nothing else of
    the tables leaves a device. The token comes from --token-file, or from [fcp:admin] token_file,
    or from the environment variable FCP_ADMIN__TOKEN.
    """
    from fcp_core.protocol.status import StatusError
    from fcp_core.tasks.sql_query import SqlQuery
    from fcp_core.tasks.sql_question import COLLECTION_URI

    shape = _shape(shape, output)
    asked = SqlQuery(
        sql,
        collection=COLLECTION_URI if collection is None else collection,
        types=dict.fromkeys(integers, "integer"),
        **_given(more),
    )
    if explain:
        _explain(asked)
        return
    try:
        spec = asked.to_spec(
            population=population,
            name=name,
            goal_count=goal,
            minimum_count=minimum,
            deadline=deadline,
            protocol=protocol,
        )
    except StatusError as error:
        raise UsageError(f"{error.message}.") from None
    with connected(lambda: connect(invocation, **more)) as client:
        task_id = client.submit(spec).task_id
        try:
            show_course(client, task_id, err=True)
        except KeyboardInterrupt:
            click.echo(f"the task goes on: fcp tasks result {task_id}", err=True)
            raise
        table = asked.table(client.result(task_id), client.get(task_id).release)
    _show(table, sql, shape, output)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Take from the options those that say how private the answer is, as far as they are given."""
    taken = {name: options.pop(name) for name in _PRIVATE}
    masked = options.pop("masked")
    given = {name for name, value in taken.items() if value is not None}
    if taken["epsilon"] is None and given & {"delta", "max_groups"}:
        raise UsageError("--delta and --max-groups go with --epsilon.")
    if taken["epsilon"] is None and not masked and "max_rows" in given:
        raise UsageError("--max-rows goes with --epsilon, or with --masked.")
    if not masked and given & {"capacity", "key_bytes"}:
        raise UsageError("--capacity and --key-bytes go with --masked.")
    for name, value in taken.items():
        least = 8 if name == "key_bytes" else 1e-300
        if value is not None and (not 0 <= value < 1 if name == "delta" else not value >= least):
            raise UsageError(f"--{name.replace('_', '-')}: {value} will not do.")
    chosen = {name: value for name, value in taken.items() if value is not None}
    return {**chosen, **({"masked": True} if masked else {})}


def _shape(shape: str | None, output: Path | None) -> str:
    """Return how the answer is shown."""
    if shape is None:
        known = {suffix: name for name, suffix in _FORMATS.items()}
        shape = "table" if output is None else known.get(output.suffix, "csv")
    if output is None and shape in ("parquet", "plot"):
        raise UsageError(f"--format {shape} needs --output, a file.")
    return shape


def _show(table: Table, title: str, shape: str, output: Path | None) -> None:
    from fcp_core.tasks.plots import bar_chart
    from fcp_core.tasks.tables import ERROR

    if shape == "plot" and output is not None:
        write_file(output, bar_chart(table, title).encode())
    elif shape == "table":
        errors = {c.name: c.values for c in table.columns if c.name.endswith(ERROR)}
        kept = [column for column in table.columns if column.name not in errors]
        shown = make_table(*(column.name for column in kept))
        for number in range(len(table.columns[0].values)):
            cells = []
            for column in kept:
                off = errors.get(f"{column.name}{ERROR}")
                cells.append(_cell(column.values[number], None if off is None else off[number]))
            shown.add_row(*cells)
        print_tables(shown)
    elif output is None:
        print_data(table.to_json() if shape == "json" else table.to_csv())
    else:
        table.write(output, _FORMATS[shape])


def _cell(value: Any, off: float | None) -> str:
    """Return a value as it is shown, with the standard deviation of its noise if there is any."""
    if value is None:
        return "NULL"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if off is None else f"{text} ± {off:.3g}"


def _explain(query: SqlQuery) -> None:
    lowered = query.lowered()
    for part in lowered.parts:
        click.echo(f"Each device answers:\n  {part.sql}")
    for intrinsic in lowered.intrinsics:
        click.echo(f"The server groups ({intrinsic.uri}) by: {_names(intrinsic.inputs)}")
        for nested in intrinsic.nested:
            click.echo(f"  {nested.uri} of {_names(nested.inputs)}")
        for parameter in intrinsic.parameters:
            click.echo(f"  {parameter.name}: {parameter.value}")
    click.echo(f"Then, of the keys k and the measures m:\n  {lowered.parsed.shown_sql}")


def _names(specs: Any) -> str:
    return ", ".join(spec.name for spec in specs) or "nothing"
