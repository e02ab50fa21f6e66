"""``fcp demo``: train a model on devices that run in processes of their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fcp_platform.demo.display import Board
    from fcp_platform.demo.settings import DemoResult, Settings


@click.command()
@click.option(
    "--light", is_flag=True, help="Train with NumPy alone: no TensorFlow, no files; in seconds."
)
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--devices", default=30, show_default=True, type=click.IntRange(1, 140))
@click.option(
    "--contributions",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="How many devices contribute to a round.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="How many processes host the devices [default: one a processor].",
)
@click.option("--seed", default=0, show_default=True, help="Of the data, the deal and the weights.")
@click.option(
    "--aggregator",
    metavar="NAME",
    help="An aggregator plugin to use for what it serves, such as 'median'; see 'fcp plugins'.",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="An aggregation protocol to use, such as 'secagg'; the updates are summed under it.",
)
@click.option(
    "--privacy",
    metavar="EPSILON",
    type=click.FloatRange(min=0, min_open=True),
    help="Make the model differentially private: what all rounds may cost a device, at delta 1e-5.",
)
@click.option(
    "--clip",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="With --privacy: the largest L2 norm of a device's update.",
)
@click.option(
    "--drop",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 0.5),
    help="The fraction of the devices that vanish while they contribute.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Where examples, program state, summaries and the result go.",
)
@click.option("--resume", is_flag=True, help="Go on after the last round that FOLDER has.")
@click.option("--port", default=0, help="What the server listens on [default: any free port].")
@click.option(
    "--round-deadline",
    default=120.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which a round that is not complete fails.",
)
@click.pass_obj
def demo(
    invocation: Any, /, light: bool, devices: int, processes: int | None, **given: Any
) -> None:
    """Train a classifier of handwritten digits on devices that keep their data.

    The digits that scikit-learn ships are dealt to the devices, each with its own mix of labels.
    Client processes host the devices and speak nothing but the Federated Compute protocol with this
    process, which runs the server and a TFF program: weighted federated averaging, with an
    evaluation on held-out digits after each round. TensorBoard summaries, a CSV file of metrics and
    the program's state go to FOLDER; a run that was killed goes on with --resume.

    With --light the devices draw digits themselves, train a network of NumPy, and no package is
    needed that fcp-server does not bring.
    """
    # TensorFlow talks a lot while it loads; set before anything imports it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TFF's secure aggregators leave assertions unused, each of which TensorFlow reports at length.
    logging.getLogger("tensorflow").addFilter(lambda log: "never used" not in log.getMessage())
    from fcp_platform.demo.settings import Settings

    if light:
        if any(given[name] for name in ("resume", "drop", "protocol", "privacy")):
            raise click.UsageError(
                "--light keeps nothing, drops nobody and has one protocol: leave out --resume, "
                "--drop, --protocol and --privacy."
            )
        from fcp_platform.demo.light import run
    else:
        from fcp_platform.demo.program import run
    processes = processes or min(os.cpu_count() or 1, devices)
    given |= {"options": invocation.overrides, "config_file": invocation.config_file}
    _show(run, Settings(devices=devices, processes=processes, **given), light)


def _show(run: Callable[[Settings, Board], DemoResult], settings: Settings, light: bool) -> None:
    """Run the demonstration, and say what came of it."""
    from fcp_platform.demo.display import Board
    from fcp_platform.demo.settings import DELTA

    rounds, folder = settings.rounds, settings.folder
    try:
        with Board(rounds, settings.contributions) as board:
            result = run(settings, board)
    except ValueError as error:
        # A round that failed says so as a ValueError, as the reference platform's does.
        raise click.ClickException(str(error)) from error
    console = board.console
    if not result.accuracy:
        console.print(f"Nothing to do: {folder} has the state of all {rounds} rounds.")
        return
    seconds = result.seconds
    console.print(
        f"Accuracy on {result.held_out} held-out digits: [bold]{result.accuracy[-1]:.3f}[/bold] "
        f"after {rounds} rounds, {seconds['whole run']:.0f} s in all.",
        highlight=False,
    )
    if result.spent:
        console.print(
            f"Epsilon {result.spent['epsilon']:.2f} at delta {DELTA:g} was booked for each device. "
            f"TFF's own simulation with the same noise: {result.spent['simulated_accuracy']:.3f}.",
            highlight=False,
        )
    if result.in_the_clear:
        console.print(
            "In TFF's own simulation, in the clear and with nobody vanishing: "
            f"{result.in_the_clear[-1]:.3f}.",
            highlight=False,
        )
    if not light:
        console.print(f"TensorBoard summaries, metrics and state: {folder}", highlight=False)
