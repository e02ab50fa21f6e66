"""The protocol kit catches protocols that are broken on purpose."""

import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import Accumulate, Answer, Drop, Keep, Pending, Work
from fcp_core.testing import AggregationProtocolConformance
from fcp_core.testing.masked_sum import FILE, MASKED_SUM, MaskedSum, MaskedSumDevice
from fcp_core.testing.masked_sum.messages import add_mask
from tests.testing_kit.device_steps import each
from tests.testing_kit.kept_protocols import OPTIONS, START, SUBMIT, Kept, plain


class KeepsTheGone(Kept):
    """Keeps a device that has not called, and again when it is gone."""

    def start(self, task, now):
        return [Keep(("assignment-0",))]


class KeepsTwice(Kept):
    def receive(self, call, now):
        effects = super().receive(call, now)
        return [Keep((call.assignment,)), *effects] if call.method == SUBMIT else effects


class CountsNoParts(Kept):
    def worked(self, key, result, now):
        return [replace(effect, parts=()) for effect in super().worked(key, result, now)]


class DropsTheKept(Kept):
    """Tells OK to nobody, though it drops whom it kept."""

    def worked(self, key, result, now):
        effects = super().worked(key, result, now)
        return [Drop(key, "kept", Code.ABORTED, "no"), *effects] if effects else effects


class RaisesWhenTicked(plain.Plain):
    def tick(self, now):
        raise RuntimeError("a bug")

    def next_tick(self):
        return 2000.0


class RefusesUploads(plain.Plain):
    def uploaded(self, upload, now):
        raise StatusError(Code.INVALID_ARGUMENT, "no")


class RefusesWithoutAWord(plain.Plain):
    def receive(self, call, now):
        try:
            return super().receive(call, now)
        except StatusError as error:
            raise StatusError(error.code, "") from None


class Remembers(plain.Plain):
    def left(self, assignment, code, now):
        self.there.add(assignment)
        return ()


class SpeaksToTheGone(plain.Plain):
    def left(self, assignment, code, now):
        return [Answer(assignment, START, StatusError(Code.ABORTED, "you have left"))]


class DropsTheGone(plain.Plain):
    def left(self, assignment, code, now):
        return [Drop(assignment, "gone", Code.ABORTED, "you have left")]


class DropsTheCounted(plain.Plain):
    def accumulated(self, assignments, error, now):
        return [Drop(a, "late", Code.ABORTED, "changed my mind") for a in assignments]


class DropsWithOk(plain.Plain):
    def uploaded(self, upload, now):
        return [Drop(upload.assignment, "upload", Code.OK, "all is well")]


class CountsStrangers(plain.Plain):
    def uploaded(self, upload, now):
        return [Accumulate(("nobody",), slot=plain.SLOT)]


class CountsNobody(plain.Plain):
    def uploaded(self, upload, now):
        return [Accumulate((), checkpoint=b"")]


class CountsNothing(plain.Plain):
    def uploaded(self, upload, now):
        return [Accumulate((upload.assignment,))]


class CountsAnotherSlot(plain.Plain):
    def uploaded(self, upload, now):
        return [Accumulate((upload.assignment,), slot="other")]


class AnswersWithSomethingElse(plain.Plain):
    def where(self, tickets):
        return pb.SubmitAggregationResultResponse()


class AsksWithoutAPause(MaskedSum):
    def __init__(self, **options):
        super().__init__(**options)
        self._metadata = FILE["Waiting"]()


class PendsWithSomethingElse(MaskedSum):
    def __init__(self, **options):
        super().__init__(**options)
        self._metadata = ForwardingInfo()


class HasShortCallsWait(plain.Plain):
    def receive(self, call, now):
        effects = super().receive(call, now)
        if call.method == SUBMIT:
            return [Pending(call.assignment, SUBMIT, ForwardingInfo()), *effects]
        return effects


class NoEffect(plain.Plain):
    def uploaded(self, upload, now):
        super().uploaded(upload, now)
        return ["accumulate it"]


class FailsAtWork(plain.Plain):
    def uploaded(self, upload, now):
        super().uploaded(upload, now)
        return [Work("key", "json:loads", b"nonsense")]


class TicksForEver(plain.Plain):
    def next_tick(self):
        return 0.0


class ReadsTheClock(plain.Plain):
    def receive(self, call, now):
        return super().receive(call, time.time())


class ThrowsDice(plain.Plain):
    def uploaded(self, upload, now):
        random.random()
        return super().uploaded(upload, now)


class HasItsOwnDice(plain.Plain):
    """No guard sees a generator that was seeded by the machine; equal seeds must be equal."""

    dice = random.Random()

    def where(self, tickets):
        response = super().where(tickets)
        headers = response.aggregation_protocol_forwarding_info.extra_request_headers
        headers["x-dice"] = str(self.dice.random())
        return response


class Undescribed(plain.Plain):
    def describe(self, assignment):
        pass


class DescribedAsAnother(plain.Plain):
    def describe(self, assignment):
        assignment.confidential_aggregation_info.SetInParent()


class ForgetsAtTheDeadline(MaskedSum):
    """Forgets a cohort when its time is over, and tells nobody."""

    def _give_up(self, cohort, message):
        super()._give_up(cohort, message)
        return []


class LingersLong(MaskedSum):
    """Gives each phase a hundred times its time."""

    def __init__(self, phase_timeout, **options):
        super().__init__(phase_timeout=100 * phase_timeout, **options)


class IgnoresTheMissing(MaskedSum):
    """Takes the sum with the masks of the missing ones in it."""

    def _accumulate(self, cohort):
        cohort.revealed = {}
        return super()._accumulate(cohort)


class CountsTheMissing(MaskedSum):
    """Counts everybody who joined."""

    def _hand_out_seeds(self, cohort, now):
        cohort.everybody = tuple(cohort.joined)
        return super()._hand_out_seeds(cohort, now)

    def _accumulate(self, cohort):
        return replace(super()._accumulate(cohort), assignments=cohort.everybody)


class LosesACohort(MaskedSum):
    """Takes nobody after the first cohort that was refused."""

    def accumulated(self, assignments, error, now):
        if error is not None:
            self._cohort = self._minimum = 10**6
        return super().accumulated(assignments, error, now)


class WrongMask(MaskedSumDevice):
    """A device that masks with a mask of its own."""

    def contribute(self, assignment, results):
        return each(super().contribute(assignment, results), self.carry)

    def carry(self, step):
        if hasattr(step, "data"):
            vector = add_mask(dict(open_checkpoint(step.data)), b"mine", 0, 1)
            step = replace(step, data=write_checkpoint(vector, "federated_compute"))
        return (yield step)


class OtherToken(plain.Upload):
    def contribute(self, assignment, results):
        assignment.authorization_token = "stolen"
        return super().contribute(assignment, results)


def kit(made):
    """Return the laws for a machine's class, or for changes to a factory."""
    masked = isinstance(made, type) and issubclass(made, MaskedSum)
    if masked or made is WrongMask:
        change = {"make": lambda options: made(**options)} if masked else {"device": made}
        fields = {"factory": replace(MASKED_SUM, **change), "options": OPTIONS, "group": 3}
        fields["patience"] = 90.0
    else:
        changes = made if isinstance(made, dict) else {"machine": made}
        fields = {"factory": plain.factory(**changes)}
    fields |= {"shrink": False, "derandomize": True, "max_examples": 200}
    return type("Laws", (AggregationProtocolConformance,), fields)()


HONEST = "test_honest_devices_are_counted_once"
ANY = "test_ok_means_counted_in_any_history"
VANISHING = "test_whoever_vanishes_the_others_go_on"
REFUSED = "test_what_is_refused_is_not_told_ok"
WAITS = "test_nobody_waits_for_ever"
FORGOTTEN = "test_who_has_left_is_forgotten"
SENDS = "test_nothing_that_a_device_sends_breaks_it"
MACHINE = "test_it_is_a_machine"
FACTORY = "test_the_factory_describes_itself"

BROKEN = [
    (FACTORY, {"name": ""}),
    (FACTORY, {"summary": "two\nlines"}),
    (FACTORY, {"services": ()}),
    (FACTORY, {"services": ("nowhere.Service",)}),
    (FACTORY, {"check": lambda spec, options: ["I do not like it."]}),
    (FACTORY, type("TellsNobody", (plain.Plain,), {"concluding": ()})),
    (FACTORY, type("ConcludesElsewhere", (plain.Plain,), {"concluding": ("Conclude",)})),
    (HONEST, {"device": OtherToken}),
    (HONEST, plain.SaysOkay),
    (ANY, plain.SaysOkay),
    (REFUSED, plain.SaysOkayToTheRefused),
    (ANY, plain.SaysOkayToTheRefused),
    (HONEST, plain.NeverAccumulates),
    (HONEST, plain.NeverAnswers),
    (WAITS, plain.NeverAnswers),
    (HONEST, plain.NeverStarts),
    (HONEST, plain.AnswersTwice),
    (HONEST, plain.CountsTwice),
    (HONEST, plain.Raises),
    (SENDS, plain.RaisesOnTheUnexpected),
    (WAITS, plain.OutlivesTheDeadline),
    (HONEST, RaisesWhenTicked),
    (HONEST, RefusesUploads),
    (SENDS, RefusesWithoutAWord),
    (FORGOTTEN, Remembers),
    (ANY, SpeaksToTheGone),
    (ANY, DropsTheGone),
    (HONEST, DropsTheCounted),
    (HONEST, DropsWithOk),
    (HONEST, CountsStrangers),
    (HONEST, CountsNobody),
    (HONEST, CountsNothing),
    (HONEST, CountsAnotherSlot),
    (HONEST, AnswersWithSomethingElse),
    (HONEST, AsksWithoutAPause),
    (HONEST, PendsWithSomethingElse),
    (HONEST, HasShortCallsWait),
    (HONEST, NoEffect),
    (HONEST, KeepsTheGone),
    (HONEST, KeepsTwice),
    (HONEST, CountsNoParts),
    (HONEST, DropsTheKept),
    (HONEST, FailsAtWork),
    (HONEST, TicksForEver),
    (MACHINE, ReadsTheClock),
    (MACHINE, ThrowsDice),
    (MACHINE, HasItsOwnDice),
    (HONEST, Undescribed),
    (HONEST, DescribedAsAnother),
    (WAITS, ForgetsAtTheDeadline),
    (WAITS, LingersLong),
    (VANISHING, IgnoresTheMissing),
    (VANISHING, CountsTheMissing),
    (REFUSED, LosesACohort),
    (HONEST, WrongMask),
]


def name_of(value):
    """Name a parameter alike in every process: without the address of an object."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", str(value))


@pytest.mark.slow
@pytest.mark.parametrize(("law", "made"), BROKEN, ids=name_of)
def test_the_protocol_kit_catches(law, made):
    with pytest.raises(AssertionError):
        getattr(kit(made), law)()


#: A part of what the author of each fault is told.
TOLD = {
    "ok before it counts": "but assignment-0 is accumulating",
    "ok for what was refused": "but no such call waits",
    "never accumulates": "but assignment-0 is live",
    "never answers": "assignment-0 waits for SubmitAggregationResult 3600 s after",
    "never starts": "assignment-0 waits for StartAggregationDataUpload 3600 s after",
    "answers twice": "but no such call waits",
    "counts twice": "but assignment-0 is accumulating",
    "raises": "uploaded raised ZeroDivisionError",
    "outlives the deadline": "assignment-0 waits for SubmitAggregationResult 3600 s after",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(plain.FAULTS))
def test_a_fault_is_named_as_such(fault):
    """What breaks a law is told from what went wrong in the kit."""
    laws = kit(plain.FAULTS[fault])
    messages = []
    for law in (HONEST, REFUSED, WAITS):
        try:
            getattr(laws, law)()
        except AssertionError as error:
            messages.append(str(error))
    assert any(TOLD[fault] in message for message in messages), messages


def test_every_protocol_law_has_a_broken_machine():
    laws = {name for name in dir(AggregationProtocolConformance) if name.startswith("test_")}
    assert {law for law, _ in BROKEN} == laws


def test_the_page_lists_the_laws():
    page = Path(__file__).parents[2] / "docs" / "protocols.md"
    listed = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.M)
    laws = [name for name in vars(AggregationProtocolConformance) if name.startswith("test_")]
    assert [f"test_{law}" for law in listed] == laws
