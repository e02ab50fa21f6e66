"""``fcp members``: which processes share a server's storage, and who owns which population."""

from __future__ import annotations

import time

import click

from fcp_core.commands.output import make_table, print_tables
from fcp_core.commands.tasks import Connect, admin_command, connected


@admin_command(
    "members", "Show the processes that share a server's storage, and who owns which population."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def members(connect: Connect, *, as_json: bool) -> None:
    """Print two tables, or JSON."""
    import msgspec

    with connected(connect) as client:
        found = client.members()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    table = make_table("member", "host", "process", "address", "since", "behind", "owns", "state")
    for each in found.members:
        table.add_row(
            each.member_id or "alone",
            each.host,
            str(each.pid),
            each.url,
            _time(each.started),
            f"{each.behind:.1f} s",
            str(each.owns),
            "gone" if not each.lives else "gives back" if each.draining else "serves",
        )
    leases = make_table("population", "owner", "host", "process", "epoch", "since", "left")
    for lease in found.leases:
        owner = lease.member_id or ("nobody" if lease.epoch else "alone")
        leases.add_row(
            lease.population,
            owner,
            lease.host,
            str(lease.pid or ""),
            str(lease.epoch),
            _time(lease.since),
            f"{lease.left:.1f} s" if lease.epoch else "",
        )
    print_tables(table, leases)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
