"""The demonstration from beginning to end: examples, client processes, the program, the outcome."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict

from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.plugins.manager import Plugins
from fcp_platform.demo import data
from fcp_platform.demo.devices import EXAMPLES
from fcp_platform.demo.display import Board
from fcp_platform.demo.hosts import hosted
from fcp_platform.demo.settings import HELD_OUT, DemoResult, Settings


def run(settings: Settings, board: Board) -> DemoResult:
    """Run the demonstration.

    :raises UsageError: for settings that do not fit, or nothing to resume.
    :raises MissingExtraError: if its packages are not installed.
    """
    settings.check()
    # Said here, once; each client process would end with an ImportError of its own.
    if not all(map(importlib.util.find_spec, ("sklearn", "tensorflow", "tensorflow_federated"))):
        raise MissingExtraError(
            "the demonstration", "tff", "'fcp demo --light' trains without them."
        )
    # A name that is mistyped is told before anything is started, and TensorFlow loaded.
    Plugins.load(
        config_file=settings.config_file,
        overrides=settings.choices(),
        overrides_origin="the command line",
    )
    began = time.perf_counter()
    result = DemoResult()
    state_folder = settings.folder / "state"
    if settings.resume:
        if not state_folder.is_dir():
            raise UsageError(
                f"there is no program state in {state_folder}; run without --resume first."
            )
    else:
        for name in ("state", "summaries", "devices"):
            shutil.rmtree(settings.folder / name, ignore_errors=True)
    folders = [settings.folder / "devices" / f"{n:02d}" for n in range(settings.devices)]
    with ExitStack() as stack:
        board.status = "starting the client processes, loading TensorFlow Federated"
        hosts = stack.enter_context(
            hosted(folders, settings.processes, result.devices, settings.drop)
        )
        training, held_out = data.load(settings.seed, HELD_OUT)
        hands = data.deal(training, settings.devices, settings.seed)
        for folder, hand in zip(folders, hands, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            data.write_examples(folder / EXAMPLES, hand)
        # Imported late: the client processes load TensorFlow at the same time.
        from fcp_platform.demo.training import Training

        training_program = Training(settings, board, held_out, result)
        result.seconds["start-up"] = time.perf_counter() - began
        asyncio.run(training_program.run(hosts, hands))
    result.seconds["whole run"] = time.perf_counter() - began
    result.seconds["devices' plans"] = result.devices.get("computation_seconds", 0.0)
    result.seconds["server's event loop"] = board.server_seconds
    report = settings.folder / "outcome.json"
    report.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result
