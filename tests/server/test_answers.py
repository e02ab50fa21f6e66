"""Holds the table of docs/answers.md to what devices are answered over HTTP."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
import urllib3

from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.server.services import task_factory
from tests.server.answer_lab import Lab
from tests.server.fronts import WAIT
from tests.server.servers import BODY

PAGE = Path(__file__).parents[2] / "docs" / "answers.md"


def rows():
    """Return the answers of the page by the names of their rows."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and (name := re.fullmatch(r"`([a-z-]+)`", cells[0])):
            found[name[1]] = cells[3]
    return found


async def fails(*arguments):
    raise OSError("the disk is full")


async def is_busy(*arguments):
    raise StatusError(Code.UNAVAILABLE, "not now")


def no_task(lab):
    return lab.status(lab.device().check_in)


def sessions_full(lab):
    lab.submit(goal=5, selection="cohort")
    waits = lab.device()
    waits.check_in()
    path = f"/v1/populations/people/taskassignments/{waits.session_id}:start?%24alt=proto"
    waits.send("POST", lab.thread.server.url, path)
    return lab.status(lab.device().check_in)


def check_in_unauthenticated(lab):
    lab.submit()
    lab.broken = True
    return lab.status(lab.device().check_in)


def check_in_fault(lab):
    lab.services.eligibility_eval_tasks.request_eligibility_eval_task = fails
    return lab.status(lab.device().check_in)


def no_population(lab):
    return lab.status(lab.device("nobody").check_in)


def malformed(lab):
    path = "/v1/eligibilityevaltasks/people:request?%24alt=proto"
    device = lab.device()
    return lab.status(lambda: device.send("POST", lab.thread.server.url, path, b"\xff\xff"))


def waiting_full(lab):
    lab.submit()
    devices = [lab.device() for _ in range(2)]
    for device in devices:
        device.check_in()
    with mock.patch("fcp_core.server.services.assignments.MOST_WAITING", 0):
        return lab.status(lambda: lab.start(devices[1]))


def start_fault(lab):
    lab.submit()
    device = lab.device()
    device.check_in()
    lab.services.task_assignments.start_task_assignment = fails
    return lab.status(lambda: lab.start(device))


def multiple_fault(lab):
    lab.submit(name="t", assignment_mode=AssignmentMode.MULTIPLE)
    device = lab.device()
    device.check_in()
    lab.services.task_assignments.perform_multiple_task_assignments = fails
    return lab.multiple(device)


def report_fault(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    lab.services.task_assignments.report_task_result = is_busy
    return lab.status(lambda: device.report(given))


def late_begin(lab):
    lab.submit(goal=2)
    task = lab.submit(goal=2, name="other")
    devices = [lab.device() for _ in range(4)]
    given = [device.assignment()[0] for device in devices]
    lab.do(lab.services.tasks.cancel(task))
    (answer,) = {
        lab.status(lambda d=d, g=g: d.start_upload(g)) for d, g in zip(devices, given, strict=True)
    }
    return answer


def ended_start(lab):
    task = lab.submit()
    device = lab.device()
    device.check_in()
    assert lab.start(device).HasField("task_assignment")  # its answer is lost
    lab.do(lab.services.tasks.cancel(task))
    return lab.status(lambda: lab.start(device))


def ended_multiple(lab):
    task = lab.submit(name="t", assignment_mode=AssignmentMode.MULTIPLE)
    device = lab.device()
    device.check_in()
    assert lab.multiple(device) == "200 with a task"
    lab.do(lab.services.tasks.cancel(task))
    return lab.multiple(device)


def ended_download(lab):
    task = lab.submit()
    given, *_ = lab.device().assignment()
    assert urllib3.request("GET", given.plan.uri).status == 200
    lab.do(lab.services.tasks.cancel(task))
    return str(urllib3.request("GET", given.plan.uri).status)


def late_upload(lab):
    device, _, upload = lab.late()
    answer = lab.status(lambda: device.upload(upload, BODY))
    assert lab.services.media.held == 0
    return answer


def late_submit(lab):
    device, given, upload = lab.late()
    device.upload(upload, BODY)
    return lab.status(lambda: device.submit(given, upload))


def refused_begin(lab):
    task = lab.submit(late_contributions="refuse")
    device = lab.device()
    given, *_ = device.assignment()
    lab.do(lab.services.tasks.cancel(task))
    return lab.status(lambda: device.start_upload(given))


def refused_submit(lab):
    task = lab.submit(late_contributions="refuse")
    device = lab.device()
    given, *_ = device.assignment()
    upload = device.start_upload(given)
    device.upload(upload, BODY)
    lab.do(lab.services.tasks.cancel(task))
    return lab.status(lambda: device.submit(given, upload))


def forged(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    return lab.status(lambda: device.start_upload(given, "forged"))


def uploading(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    return device, device.start_upload(given)


def no_room(lab):
    device, upload = uploading(lab)
    lab.services.media._memory.hold(lab.services.media._memory._limit)
    return lab.status(lambda: device.upload(upload, BODY))


def waits_for_room(lab):
    device, upload = uploading(lab)
    memory = lab.services.media._memory
    begin = lab.services.media.begin_upload

    async def begins(*arguments):
        # What is held is released only once the upload waits.
        asyncio.get_running_loop().call_soon(memory.release, memory._limit)
        return await begin(*arguments)

    lab.services.media.begin_upload = begins
    memory.hold(memory._limit)
    return f"{lab.status(lambda: device.upload(upload, BODY))} after a wait"


def wrong_name(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    upload = device.start_upload(given)
    device.upload(upload, BODY)
    return lab.status(lambda: device.submit(given, upload, "another"))


def unfit(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    upload = device.start_upload(given)
    device.upload(upload, b"no checkpoint")
    return lab.status(lambda: device.submit(given, upload))


def broken_fold(lab):
    lab.submit()
    with mock.patch("fcp_core.aggregation.local_fold.LocalFold.add", side_effect=OSError("why")):
        return lab.status(lambda: lab.device().contribute(BODY) and None)


def counted(lab):
    lab.submit()
    return lab.status(lambda: lab.device().contribute(BODY) and None)


def silent(lab):
    """Return a device whose sender holds a place that is overdue."""
    lab.submit(goal=5)
    lab.submit(name="t", assignment_mode=AssignmentMode.MULTIPLE)
    devices = [lab.device() for _ in range(3)]
    for device in devices:
        device.check_in()
    assert lab.start(devices[0]).HasField("task_assignment")
    senders = lab.services._populations.get("people").senders
    until = time.monotonic() + WAIT
    while not lab.do(is_silent(senders)):
        assert time.monotonic() < until
        time.sleep(0.05)
    return devices[1]


async def is_silent(senders):
    return bool(senders.silent)


def silent_check_in(lab):
    return lab.status(silent(lab).check_in)


def silent_start(lab):
    device = silent(lab)
    return lab.status(lambda: lab.start(device))


def silent_multiple(lab):
    return lab.multiple(silent(lab))


def too_many(lab):
    """The burst that is allowed at once, and what is beyond."""
    device = lab.device()
    answers = {lab.status(device.check_in) for _ in range(200)}
    assert answers == {"200 rejection", "429"}
    return "429"


def lost(lab):
    """Return a device that checked in before a restart."""
    lab.submit()
    lab.submit(name="t", assignment_mode=AssignmentMode.MULTIPLE)
    device, other = lab.device(), lab.device()
    device.check_in()
    other.check_in()
    assert lab.multiple(other) == "200 with a task"
    lab.restart()
    device.forwarding.target_uri_prefix = lab.thread.server.url
    return device


def lost_start(lab):
    device = lost(lab)
    return lab.status(lambda: lab.start(device))


def lost_multiple(lab):
    return lab.multiple(lost(lab))


def lost_report(lab):
    device = lost(lab)
    request = eligibility_pb2.ReportEligibilityEvalTaskResultRequest(
        population_name="people", session_id=device.session_id
    )
    name = "EligibilityEvalTasks.ReportEligibilityEvalTaskResult"
    return lab.status(lambda: device.call(device.forwarding, name, request))


def outgrows(lab):
    device, upload = uploading(lab)
    memory = lab.services.media._memory
    size = memory._limit // 2
    memory.hold(memory._limit - size)
    info = upload.resource.data_upload_forwarding_info
    base = device.router.resolve(info, "address").base
    path = f"upload/v1/media/{quote(upload.resource.resource_name, safe='')}?upload_protocol=raw"
    chunks = (b"x" * 1000 for _ in range(2 + size // 1000))
    return lab.status(lambda: device.send("POST", base, path, chunks))


def unanswered(lab, call):
    """Return what a call is answered that is not done when the server stops."""
    begun = threading.Event()

    async def never(*arguments):
        begun.set()
        await asyncio.Event().wait()

    lab.services.eligibility_eval_tasks.request_eligibility_eval_task = never
    lab.services.task_assignments.report_task_result = never
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lab.status, call)
        assert begun.wait(WAIT)
        lab.thread.stop()
        return answer.result(WAIT)


def stops_check_in(lab):
    return unanswered(lab, lab.device().check_in)


def stops_other(lab):
    lab.submit()
    device = lab.device()
    given, *_ = device.assignment()
    return unanswered(lab, lambda: device.report(given))


PRODUCERS = {
    name.replace("_", "-"): value
    for name, value in list(globals().items())
    if callable(value) and name.replace("_", "-") in rows()
}

SILENT = {"max_silent_per_sender": 1}
STORED = {"storage": "sqlite", "storage.sqlite.path": "answers.sqlite"}
STOPS = {"drain_timeout": "10ms"}
OPTIONS = {
    "sessions-full": {"max_sessions": 1},
    "no-room": {"body_timeout": "1s"},
    "silent-check-in": SILENT,
    "silent-start": SILENT,
    "silent-multiple": SILENT,
    "too-many": {"rate_per_address": 0.01},
    "lost-start": STORED,
    "lost-multiple": STORED,
    "lost-report": STORED,
    "outgrows": {"max_in_flight": 10_000, "max_body": 10_000, "max_decompressed": 10_000},
    "stops-check-in": STOPS,
    "stops-other": STOPS,
}


@pytest.mark.parametrize("name", rows())
def test_each_row_of_the_page_is_what_is_answered(
    name, tmp_path, make_device, sum_task, http, monkeypatch
):
    if name.startswith("silent"):
        monkeypatch.setattr(task_factory, "FIRST_SIGN", 1e-6)
    lab = Lab(tmp_path, make_device, sum_task, http, **OPTIONS.get(name, {}))
    try:
        assert PRODUCERS[name](lab) == rows()[name]
    finally:
        lab.thread.stop()
