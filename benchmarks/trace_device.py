"""Which files and classes of ours one device crosses in the server, in order.

Run ``python benchmarks/trace_device.py`` for the figures, ``--write docs/architecture.md`` to bring
the lists of that page up to date. The device is the third of its task, so that nothing is done for
the first time; it uploads and submits in the plain protocol. What is generated does not count.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import urllib3

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import (
    aggregations_pb2,
    eligibility_eval_tasks_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server
from fcp_core.server.thread import ServerThread

ROOT = Path(__file__).parents[1]
FOLDERS = ("fcp_core", "aggregators", "plugins", "platform")
POPULATION = "traced"
CHECK_IN, CONTRIBUTION = "check-in", "contribution"


@dataclass
class Way:
    """What one way crosses, in the order in which it was entered first."""

    calls: int = 0
    files: dict[str, None] = field(default_factory=dict)
    classes: dict[tuple[str, str], None] = field(default_factory=dict)


class Tracer:
    """Watches the calls of the server's thread while a way is open."""

    def __init__(self) -> None:
        self.ways: dict[str, Way] = {}
        self._way: Way | None = None
        self._files: dict[str, str | None] = {}

    @contextmanager
    def way(self, name: str) -> Iterator[None]:
        """Count what happens meanwhile."""
        self._way = self.ways[name] = Way()
        try:
            yield
        finally:
            self._way = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Take an event of ``sys.setprofile``."""
        way, code = self._way, frame.f_code
        if way is None or event != "call":
            return
        if code.co_filename not in self._files:
            self._files[code.co_filename] = _file(code.co_filename)
        file = self._files[code.co_filename]
        if file is None:
            return
        way.calls += 1
        way.files[file] = None
        owner, dot, _ = getattr(code, "co_qualname", code.co_name).partition(".")
        if dot and owner.lstrip("_")[:1].isupper():
            way.classes[file, owner] = None


def _file(path: str) -> str | None:
    """Return a source file of ours by its path in the repository; None for any other."""
    try:
        file = Path(path).resolve().relative_to(ROOT)
    except ValueError:
        return None
    ours = file.parts[0] in FOLDERS and "protos" not in file.parts
    return file.as_posix() if ours else None


class Device:
    """A device that makes only the calls that have to be made."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager()

    def check_in(self) -> Any:
        """Check in and take a task; return the assignment."""
        response = self._call(
            "EligibilityEvalTasks.RequestEligibilityEvalTask",
            eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest(),
            eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse,
            population_name=POPULATION,
        )
        operation = self._call(
            "TaskAssignments.StartTaskAssignment",
            task_assignments_pb2.StartTaskAssignmentRequest(),
            longrunning.Operation,
            population_name=POPULATION,
            session_id=response.session_id,
        )
        answer = task_assignments_pb2.StartTaskAssignmentResponse()
        operation.response.Unpack(answer)
        return answer.task_assignment

    def contribute(self, assignment: Any) -> None:
        """Upload and submit."""
        operation = self._call(
            "Aggregations.StartAggregationDataUpload",
            aggregations_pb2.StartAggregationDataUploadRequest(),
            longrunning.Operation,
            aggregation_id=assignment.aggregation_id,
            authorization_token=assignment.authorization_token,
        )
        started = aggregations_pb2.StartAggregationDataUploadResponse()
        operation.response.Unpack(started)
        name = started.resource.resource_name
        body = write_checkpoint({"update": np.ones(8, np.float32)}, "tf_v1")
        self._post(f"/upload/v1/media/{name}?upload_protocol=raw", body)
        self._call(
            "Aggregations.SubmitAggregationResult",
            aggregations_pb2.SubmitAggregationResultRequest(resource_name=name),
            aggregations_pb2.SubmitAggregationResultResponse,
            aggregation_id=assignment.aggregation_id,
            client_token=started.client_token,
        )

    def _call(self, route: str, request: Any, response: Any, **variables: str) -> Any:
        path = routes.url(route, variables) + "?%24alt=proto"
        return response.FromString(self._post(path, request.SerializeToString()))

    def _post(self, path: str, body: bytes) -> bytes:
        answer = self._http.request("POST", self._url + path, body=body)
        if answer.status != 200:
            raise RuntimeError(f"{path.partition('?')[0]} was answered {answer.status}")
        return answer.data


def trace() -> dict[str, Way]:
    """Serve three devices; return what the last one crossed."""
    plugins = Plugins.load(environ={}, config_file=None, working_folder="/")
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("update", DataType.FLOAT, (8,)),),
        (TensorSpec("sum", DataType.FLOAT, (8,)),),
    )
    spec = TaskSpec(
        population=POPULATION,
        name="task",
        plan=b"plan",
        checkpoint=b"checkpoint",
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=9,
    )
    tracer = Tracer()
    with ServerThread(Server(plugins, populations=[POPULATION])) as running:
        services = running.server.services
        running.run(services.tasks.submit(spec)).result()
        device = Device(running.server.url)

        async def watch() -> None:
            sys.setprofile(tracer)

        for number in range(3):
            if number == 2:
                running.run(watch()).result()
            with tracer.way(CHECK_IN):
                assignment = device.check_in()
            with tracer.way(CONTRIBUTION):
                device.contribute(assignment)
    return tracer.ways


def listed(page: str) -> dict[str, list[str]]:
    """Return the files that a page lists for each way."""
    return {
        name: re.findall(r"^- `(.+)`$", _section(name).search(page)[2], re.MULTILINE)  # type: ignore[index]
        for name in (CHECK_IN, CONTRIBUTION)
    }


def updated(page: str, ways: dict[str, Way]) -> str:
    """Return a page with the lists of these ways."""
    for name, way in ways.items():
        lines = "".join(f"- `{file}`\n" for file in way.files)
        page = _section(name).sub(
            lambda found, lines=lines: f"{found[1]}\n{lines}\n{found[3]}", page
        )
    return page


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- way: {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Trace, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="the page whose lists are brought up to date")
    arguments = parser.parse_args()
    ways = trace()
    for name, way in ways.items():
        print(f"{name}: {way.calls} calls, {len(way.files)} files, {len(way.classes)} classes")
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(updated(page, ways), encoding="utf-8")


if __name__ == "__main__":
    main()
