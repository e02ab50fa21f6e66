"""Protocols that the kit is tried on."""

import numpy as np

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.protocols import Accumulate, Drop, Keep, Work
from tests.testing_kit import plain_protocol as plain

START, SUBMIT = plain.START, plain.SUBMIT

OPTIONS = {"cohort": 3, "minimum": 2, "phase_timeout": 30.0, "polling_interval": 0.5}


class Prepared(plain.Plain):
    """Correct too: the engine prepares contributions before they are accumulated."""

    reads = True

    def __init__(self):
        super().__init__()
        self.bodies = {}

    def uploaded(self, upload, now):
        self.bodies[upload.assignment] = bytes(upload.body)
        return super().uploaded(upload, now)

    def receive(self, call, now):
        effects = super().receive(call, now)
        if call.method == SUBMIT:
            return [Work(call.assignment, "builtins:bytes", self.bodies[call.assignment])]
        return effects

    def worked(self, key, result, now):
        if self.bodies.pop(key, None) is None:
            return ()  # its device has left meanwhile
        if isinstance(result, StatusError):
            return [Drop(key, "work", result.code, result.message)]
        return [Accumulate((key,), checkpoint=result)]

    def left(self, assignment, code, now):
        self.bodies.pop(assignment, None)
        return super().left(assignment, code, now)


class Kept(Prepared):
    """Correct too: once it has a contribution it needs the device no more; it comes in parts."""

    def __init__(self):
        super().__init__()
        self.kept = set()

    def receive(self, call, now):
        effects = super().receive(call, now)
        if call.method != SUBMIT:
            return effects
        self.kept.add(call.assignment)
        return [Keep((call.assignment,)), *effects]

    def worked(self, key, result, now):
        del self.bodies[key]
        self.kept.remove(key)
        if isinstance(result, StatusError):
            return [Drop(key, "work", result.code, result.message)]
        zeros = {"v": np.zeros(2, np.int64)}
        return [Accumulate((key,), parts=(result, write_checkpoint(zeros, "federated_compute")))]

    def left(self, assignment, code, now):
        return () if assignment in self.kept else super().left(assignment, code, now)
