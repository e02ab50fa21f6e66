"""``fcp query``: a question in SQL to the devices of a population."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.output import make_table, print_tables, write_file
from fcp_core.commands.tasks import FILE, admin_options, connect, connected, show_course
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.tasks.sql_query import SqlQuery
    from fcp_core.tasks.tables import Table

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
    collection: str | None,
    integers: tuple[str, ...],
    min_devices: int | None,
    shape: str | None,
    output: Path | None,
    explain: bool,
    **server: Any,
) -> None:
    """Ask the devices of a population a question in SQL, and show the answer.

    Each device answers from its own tables; the server aggregates the answers, and nothing else of
    the tables leaves a device. The token comes from --token-file, or from [fcp:admin] token_file,
    or from the environment variable FCP_ADMIN__TOKEN.
    """
    from fcp_core.protocol.status import StatusError
    from fcp_core.tasks.sql_query import COLLECTION_URI, SqlQuery

    shape = _shape(shape, output)
    asked = SqlQuery(
        sql,
        collection=COLLECTION_URI if collection is None else collection,
        types=dict.fromkeys(integers, "integer"),
        min_devices=min_devices,
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
        )
    except StatusError as error:
        raise UsageError(f"{error.message}.") from None
    with connected(lambda: connect(invocation, **server)) as client:
        task_id = client.submit(spec).task_id
        try:
            show_course(client, task_id, err=True)
        except KeyboardInterrupt:
            click.echo(f"the task goes on: fcp tasks result {task_id}", err=True)
            raise
        table = asked.table(client.result(task_id))
    _show(table, sql, shape, output)


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

    if shape == "plot" and output is not None:
        write_file(output, bar_chart(table, title).encode())
    elif shape == "table":
        shown = make_table(*(column.name for column in table.columns))
        for row in table.rows():
            shown.add_row(*map(_cell, row))
        print_tables(shown)
    elif output is None:
        click.echo(table.to_json() if shape == "json" else table.to_csv(), nl=False)
    else:
        table.write(output, _FORMATS[shape])


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
