"""A server that breaks when it is told to, for the answers that it gives then."""

from __future__ import annotations

from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.server import Server, ServerThread
from tests.server.fronts import WAIT


class Lab:
    """A server, its devices, and a plugin that breaks when it is told to."""

    def __init__(self, tmp_path, make_device, sum_task, http, **overrides):
        lab = self

        class Plugin:
            @hookimpl
            def fcp_authenticate(self, method, path, headers, peer, certificate):
                if lab.broken:
                    raise RuntimeError("the directory is down")
                return "fleet"

        self.broken = False
        self.http = http
        self.make_device, self.sum_task, self.Refused = make_device, sum_task, make_device.Refused
        self._plugin, self._overrides, self._folder = Plugin(), overrides, tmp_path
        self._serve()

    def _serve(self):
        plugins = Plugins.load(
            environ={},
            extra=[self._plugin],
            overrides=self._overrides,
            working_folder=self._folder,
        )
        self.thread = ServerThread(Server(plugins, populations=["people"]))
        self.thread.start()
        self.services = self.thread.server.services

    def restart(self):
        self.thread.stop()
        self._serve()

    def device(self, population="people"):
        return self.make_device(self.thread.server.url, population)

    def do(self, work):
        return self.thread.run(work).result(WAIT)

    def submit(self, goal=1, **fields):
        return self.do(self.services.tasks.submit(self.sum_task(goal=goal).replace(**fields)))

    def late(self):
        """Return a device with an upload whose task was cancelled."""
        task = self.submit()
        device = self.device()
        given, *_ = device.assignment()
        upload = device.start_upload(given)
        self.do(self.services.tasks.cancel(task))
        return device, given, upload

    def status(self, call):
        """Return what a call was answered, as the page says it."""
        try:
            answer = call()
        except self.Refused as error:
            return str(error.status)
        if answer is not None and "rejection_info" in answer.DESCRIPTOR.fields_by_name:
            return "200 rejection" if answer.HasField("rejection_info") else "200"
        return "200"

    def start(self, device):
        request = assignments_pb2.StartTaskAssignmentRequest(
            population_name="people", session_id=device.session_id
        )
        return device.call(device.forwarding, "TaskAssignments.StartTaskAssignment", request)

    def multiple(self, device):
        request = assignments_pb2.PerformMultipleTaskAssignmentsRequest(
            population_name="people", session_id=device.session_id, task_names=["t"]
        )
        name = "TaskAssignments.PerformMultipleTaskAssignments"
        answer = device.call(device.forwarding, name, request)
        return "200 without a task" if not answer.task_assignments else "200 with a task"
