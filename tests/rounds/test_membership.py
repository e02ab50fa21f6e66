"""Leases: of any number of members, whatever happens to them, one acts for a population."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.rounds.membership import (
    Drop,
    Holding,
    Membership,
    Resume,
    Suspend,
    Take,
    preferred,
)
from fcp_core.server.services.routing import lives
from fcp_core.storage.leases import Beat, LeaseLostError, beat, check
from fcp_core.storage.records import LeaseRecord, MemberRecord

SECONDS = 6.0
NAMES = ("red", "green")


class Tables:
    """A storage with a clock of its own, as its transactions see it."""

    def __init__(self):
        self.time = 0.0
        #: By how much the storage's clock was set.
        self.offset = 0.0
        self.kinds = {}
        #: What was written for each population: its epoch, in order.
        self.written = {name: [] for name in NAMES}

    def now(self):
        return 1e9 + self.time + self.offset

    def get(self, kind, key):
        return self.kinds.get(kind, {}).get(key)

    def put(self, record):
        self.kinds.setdefault(type(record), {})[record.key] = record

    def delete(self, kind, key):
        self.kinds.get(kind, {}).pop(key, None)

    def select(self, kind):
        return iter([record for _, record in sorted(self.kinds.get(kind, {}).items())])


class Member:
    """A member with a clock of its own, which runs nearly as fast as the storage's."""

    def __init__(self, name, tables, rate, offset):
        self.name, self.tables, self.rate, self.offset = name, tables, rate, offset
        self.leases = Membership(SECONDS)
        self.draining = False
        #: The epochs that its tasks were read under: what their writes are checked with.
        self.epochs = {}

    @property
    def now(self):
        return self.offset + self.tables.time * self.rate

    def ask(self):
        """Begin a transaction; return what it does, to be carried out later."""
        record = MemberRecord(self.name, "", "", "", 0, 0.0, 0.0, self.draining)
        work = Beat(record, SECONDS, self.leases.held(), (), NAMES, self.leases.given())
        return self.now, work

    def hear(self, asked, view):
        mine = {p: lease.epoch for p, lease in view.leases.items() if lease.holder == self.name}
        for change in self.leases.found(asked, mine):
            if isinstance(change, Take):
                self.epochs[change.lease.population] = change.lease.epoch
                self.leases.taken(change.lease)
            elif isinstance(change, Drop):
                self.epochs.pop(change.lease.population, None)

    def beat(self):
        asked, work = self.ask()
        self.hear(asked, beat(self.tables, work))

    def acts(self, population):
        self.leases.tick(self.now)
        return self.leases.acts(population, self.now)

    def write(self, population):
        """Write whatever its memory says, whether it thinks that it may or not."""
        epoch = self.epochs.get(population)
        if epoch is None:
            return False
        try:
            check(self.tables, population, epoch)
        except LeaseLostError:
            return False
        self.tables.written[population].append(epoch)
        return True


def make(count, rates=(1.0, 1.0, 1.0), offsets=(0.0, 50.0, -7.0)):
    tables = Tables()
    members = [Member(f"m{i}", tables, rates[i], offsets[i]) for i in range(count)]
    return tables, members


def check_all(tables, members):
    for name in NAMES:
        acting = [member for member in members if member.acts(name)]
        assert len(acting) <= 1
        lease = tables.get(LeaseRecord, name)
        for member in acting:
            # Who acts is the holder, and nobody can take it at this moment.
            assert (lease.holder, lease.epoch) == (member.name, member.epochs[name])
            assert tables.now() < lease.expires
        epochs = tables.written[name]
        assert epochs == sorted(epochs)


steps = st.lists(
    st.tuples(
        st.sampled_from(["beat", "ask", "hear", "lose", "write", "drain", "restart", "give"]),
        st.integers(0, 2),
        st.floats(0, 1.5 * SECONDS),
    ),
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    steps,
    st.tuples(*[st.floats(0.96, 1.04)] * 3),
    st.tuples(*[st.floats(-1e6, 1e6)] * 3),
)
def test_one_acts_and_the_others_cannot_write(steps, rates, offsets):
    """Pauses, clocks of any time, answers that come late or never, members that come back."""
    tables, members = make(3, rates, offsets)
    asked = {}  # transactions on their way: to the storage, or back
    for count, (step, number, wait) in enumerate(steps):
        member = members[number]
        if step == "beat":
            # It asks once at a time: what it asked before is never answered then.
            asked.pop(number, None)
            member.beat()
        elif step == "ask":
            begun, work = member.ask()
            asked[number] = begun, beat(tables, work)
        elif step == "hear" and number in asked:
            # Answers come in the order of the transactions, so this one was the last.
            member.hear(*asked.pop(number))
        elif step == "lose":
            beat(tables, member.ask()[1])
            asked.pop(number, None)
        elif step == "write":
            for name in NAMES:
                if member.acts(name):
                    assert member.write(name)
                else:
                    member.write(name)
        elif step == "drain":
            member.draining = True
        elif step == "give":
            for lease in member.leases:
                member.leases.give(lease)
                lease.released = lease.state is Holding.GIVING
        elif step == "restart":
            asked.pop(number, None)
            again = Member(f"m{number}-{count}", tables, member.rate, member.offset)
            members[number] = again
        check_all(tables, members)
        tables.time += wait
        check_all(tables, members)


def test_the_preferred_member_takes_and_keeps_it():
    tables, (one, two) = make(2)
    one.beat()
    assert one.epochs == {"red": 1, "green": 1}
    for _ in range(20):
        tables.time += SECONDS / 3
        two.beat()
        one.beat()
        assert all(one.acts(name) for name in NAMES)
    assert two.epochs == {}


def test_another_takes_over_within_a_lease_of_the_owners_death():
    tables, (one, two) = make(2)
    one.beat()
    two.beat()
    tables.time += SECONDS - 0.01
    two.beat()
    assert two.epochs == {}
    tables.time += 0.02
    two.beat()
    assert two.epochs == {"red": 2, "green": 2}
    assert not one.acts("red")
    # It wakes up, and writes what it had in mind.
    assert not one.write("red")
    assert two.write("red")
    one.beat()
    assert one.epochs == {}
    assert one.leases.held() == {}


def test_it_stops_before_its_lease_runs_out_and_goes_on_if_nobody_took_it():
    tables, (one,) = make(1)
    one.beat()
    lease = one.leases.get("red")
    tables.time += 0.9 * SECONDS
    assert [type(change) for change in one.leases.tick(one.now)] == [Suspend, Suspend]
    assert lease.state is Holding.SUSPENDED
    assert not one.acts("red")
    tables.time += 100 * SECONDS
    asked, work = one.ask()
    view = beat(tables, work)
    changes = one.leases.found(asked, {name: view.leases[name].epoch for name in NAMES})
    assert [type(change) for change in changes] == [Resume, Resume]
    assert one.acts("red")
    assert lease.epoch == 1


def test_a_lease_counts_from_when_it_was_asked_for():
    tables, (one,) = make(1)
    asked, work = one.ask()
    tables.time += 5.0
    view = beat(tables, work)
    tables.time += 5.0
    one.hear(asked, view)
    assert not one.acts("red")


def test_a_storage_whose_clock_was_set_back_does_not_keep_a_dead_owner():
    tables, (one, two) = make(2)
    one.beat()
    two.beat()
    tables.offset = -3600.0
    # One that lives goes on, whoever sees its lease first.
    two.beat()
    one.beat()
    assert one.acts("red")
    assert two.epochs == {}
    # It dies just before the clock is set once more.
    tables.offset = -7200.0
    for _ in range(4):
        two.beat()
        tables.time += SECONDS / 3 + 0.01
    two.beat()
    assert two.epochs == {"red": 2, "green": 2}


def test_a_member_with_shorter_leases_leaves_the_others_theirs():
    """As while lease_seconds is changed, one member after another."""
    tables = Tables()
    record = MemberRecord("long", "", "", "", 0, 0.0, 0.0)
    held = {}
    for _ in range(5):
        # The first sign of life of the two, and one every third of its lease from then on.
        view = beat(tables, Beat(record, SECONDS, held, NAMES))
        held = {name: lease.epoch for name, lease in view.leases.items()}
        assert held == {"red": 1, "green": 1}
        for _ in range(4):
            tables.time += SECONDS / 12
            quick = MemberRecord("quick", "", "", "", 0, 0.0, 0.0)
            seen = beat(tables, Beat(quick, SECONDS / 6, {}, NAMES))
            assert {lease.holder for lease in seen.leases.values()} == {"long"}
            assert lives(seen.members["long"], seen, SECONDS / 6)
    # It is not waited for any longer than its own lease.
    tables.time += SECONDS
    seen = beat(tables, Beat(quick, SECONDS / 6, {}, NAMES))
    assert {lease.holder for lease in seen.leases.values()} == {"quick"}
    assert not lives(seen.members["long"], seen, SECONDS / 6)


def test_what_is_given_back_is_taken_at_once():
    _, (one, two) = make(2)
    one.beat()
    two.beat()
    one.draining = True
    for lease in one.leases:
        one.leases.give(lease)
    one.beat()
    assert one.acts("red"), "what is in progress comes to an end"
    for lease in one.leases:
        lease.released = True
    one.beat()
    assert not list(one.leases)
    two.beat()
    assert two.epochs == {"red": 2, "green": 2}
    assert not one.write("red")


@pytest.mark.slow
@given(st.lists(st.uuids().map(str), min_size=1, max_size=6, unique=True), st.text())
def test_one_member_is_preferred_and_a_newcomer_takes_only_for_itself(members, population):
    first = preferred(population, members)
    assert preferred(population, reversed(members)) == first
    assert preferred(population, [*members, "newcomer"]) in (first, "newcomer")
    assert preferred(population, []) is None


def test_where_there_are_no_leases_everything_is_ones_own():
    check(Tables(), "red", 0)
    with pytest.raises(LeaseLostError, match="red"):
        check(Tables(), "red", 1)
