"""``fcp populations``: how busy the populations of a server are."""

from __future__ import annotations

from fcp_core.commands.output import make_table, print_tables
from fcp_core.commands.tasks import Connect, admin_command, connected


@admin_command("populations", "Show the populations of a server and how busy they are.")
def populations(connect: Connect) -> None:
    """Print a table."""
    with connected(connect) as client:
        found = client.populations().populations
    counted = ("open tasks", "missing", "waiting", "at work", "silent", "check-ins a second")
    table = make_table("population", *counted)
    for each in found:
        counts = (each.open_tasks, each.missing, each.waiting, each.at_work)
        silent = str(sum(each.silent.values()))
        if each.silent:
            silent += " ({})".format(", ".join(f"{n} x {v}" for v, n in each.silent.items()))
        table.add_row(each.name, *map(str, counts), silent, f"{each.check_in_rate:.1f}")
    print_tables(table)
