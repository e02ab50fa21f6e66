"""``fcp privacy``: what was spent, for operators, auditors and data protection officers."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import click

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.storage.contract import Storage
    from fcp_privacy.books import Books
    from fcp_privacy.ledger import PrivacyLedger


@click.group()
def privacy() -> None:
    """Look at what results have cost in privacy, and what is left."""


def _open(invocation: Any) -> tuple[Storage, PrivacyLedger]:
    from fcp_privacy.ledger import PrivacyLedger

    plugins = invocation.load_plugins(defaults={"storage": "sqlite"})
    return plugins.make_storage(), PrivacyLedger(plugins.config)


def _read(invocation: Any, population: str | None) -> Books:
    import asyncio

    from fcp_core.storage.contract import StorageError
    from fcp_privacy.books import read_books

    storage, ledger = _open(invocation)
    upkeep = storage.upkeep()
    if upkeep is None:
        raise UsageError("there is no ledger: this storage keeps nothing between runs.")
    try:
        return asyncio.run(read_books(upkeep, ledger, population))
    except StorageError as error:
        raise UsageError(f"{error.message}.") from None


@privacy.command()
@click.argument("population", required=False)
@click.pass_obj
def show(invocation: Any, population: str | None) -> None:
    """Print what each population has spent, what is left, and for how many results that is."""
    from fcp_core.commands.output import make_table, print_tables

    books = _read(invocation, population)
    if not books.accounts:
        click.echo("Nothing is booked.")
        return
    table = make_table("account", "relation", "releases", "spent", "budget", "left for")
    for account in books.accounts:
        forecast = account.forecast()
        table.add_row(
            account.name.partition("/")[2],
            account.balance.relation,
            str(account.balance.releases),
            account.shown,
            account.policy.say_budget(),
            "-" if forecast is None else f"{forecast} like these",
        )
    print_tables(table)


@privacy.command()
@click.argument("population", required=False)
@click.pass_obj
def export(invocation: Any, population: str | None) -> None:
    """Print the ledger as JSON: accounts, and every release with its costs and its noise."""
    click.echo(json.dumps(_read(invocation, population).to_json(), indent=1, sort_keys=True))


@privacy.command()
@click.argument("population", required=False)
@click.pass_obj
def statement(invocation: Any, population: str | None) -> None:
    """Print what a data protection officer is to know."""
    from fcp_privacy.books import statement as words

    books = _read(invocation, population)
    if not books.accounts:
        click.echo("Nothing was released with noise.")
    click.echo("\n\n".join(words(account) for account in books.accounts))


@privacy.command()
@click.argument("account")
@click.option("--rho", type=float, help="What it cost, as zCDP.")
@click.option("--epsilon", type=float, help="What it cost, with --delta.")
@click.option("--delta", type=float, default=0.0, help="The delta of --epsilon.")
@click.option("--releases", type=click.IntRange(1), default=1, help="How many results it was for.")
@click.option("--why", required=True, help="A sentence that stays in the ledger.")
@click.pass_obj
def book(
    invocation: Any,
    account: str,
    rho: float | None,
    epsilon: float | None,
    delta: float,
    releases: int,
    why: str,
) -> None:
    """Book what was released and is not in the ledger, such as before a backup was restored.

    ACCOUNT is a name as "fcp privacy show" has it: POPULATION/device.
    """
    import asyncio

    from fcp_privacy.booking import book_by_hand
    from fcp_privacy.events import ZCDP, EpsilonDelta, Event

    if (rho is None) == (epsilon is None):
        raise UsageError("say what it cost: --rho, or --epsilon and --delta.")
    event: Event = ZCDP(rho) if rho is not None else EpsilonDelta(epsilon or 0.0, delta)
    storage, ledger = _open(invocation)
    entry = f"by-hand-{uuid.uuid4()}"
    version = asyncio.run(book_by_hand(storage, ledger, account, event, releases, why, entry))
    click.echo(f"{account} is at entry {version} now.")
