"""Devices that give no sign, and those that all fail alike."""

from fcp_core.protocol.status import Code
from fcp_core.rounds.task import DroppedEffect, EndEffect, drop_outs
from fcp_core.rounds.tasks import TaskState
from tests.rounds.task_events import assign, contribute, dropped, machine, queue


def test_a_silent_device_s_place_is_given_away_and_it_counts_all_the_same():
    task = machine(goal=1, first=4.0, timeout=10.0)
    silent = task.assign("silent", "", 0.0, version="2026")
    assert (task.capacity, task.next_tick()) == (0, 4.0)
    assert task.tick(4.0) == []
    assert silent.overdue
    assert (task.capacity, task.pending, task.at_work) == (1, 1, 0)
    assert dict(task.status().silent) == {"2026": 1}
    other = task.assign("other", "", 4.0)
    assert task.capacity == 0
    task.begin(silent, 6.0)
    assert (task.status().silent, drop_outs(task.awaited.experience) < 0.11) == ({}, True)
    effects = contribute(task, silent, 6.0)
    # The other one is not needed any more, and not silent: it had no time yet.
    assert dropped(effects) == {"other": ("round_over", Code.ABORTED)}
    assert (task.contributed, task.surplus, task.silent) == (1, 1, 0)
    assert other.late
    task.validate()


def test_a_place_is_given_away_once_unless_silence_is_usual():
    for wordless, most in ((False, 4), (True, 6)):
        task = machine(goal=2, first=1.0, timeout=100.0, wordless=wordless)
        given_ = 0
        for second in range(3):
            while task.capacity:
                task.assign(f"d{given_}", "", float(second))
                given_ += 1
            task.tick(second + 1.0)
        assert given_ == most
        task.validate()


def test_silence_ends_at_the_assignment_timeout_and_is_no_lateness_at_the_task_s_end():
    task = machine(goal=2, over_selection=4.0, first=4.0, timeout=10.0)
    task.assign("early", "", 0.0, version="7")
    task.tick(4.0)
    task.assign("late", "", 7.0)
    assert dropped(task.tick(10.0)) == {"early": ("silent", Code.DEADLINE_EXCEEDED)}
    task.tick(11.0)
    made = assign(task, ["a", "b"], 12.0)
    task.assign("busy", "", 12.0)
    contribute(task, made[0], 12.0)
    effects = contribute(task, made[1], 12.0)
    ends = dropped(effects)
    assert ends == {"late": ("silent", Code.ABORTED), "busy": ("round_over", Code.ABORTED)}
    # If it comes after all, it is no fault of its own.
    assert all(task.get(name).late for name in ends)
    assert (task.contributed, task.surplus, task.dropped, task.silent) == (2, 1, 2, 2)
    assert task.story() == (
        "5 devices were assigned: 2 contributed, 1 came too late, 0 dropped, 2 silent (client "
        "versions: 1 x 7, 1 x unknown)"
    )
    task.validate()


def test_devices_that_time_out_without_a_sign_are_silent_even_before_they_are_overdue():
    task = machine(goal=2, first=50.0, timeout=10.0)
    task.assign("a", "", 0.0)
    assign(task, "b", 0.0)
    ends = dropped(task.tick(10.0))
    assert {name: phase for name, (phase, _) in ends.items()} == {
        "a": "silent", "b": "assignment_timeout"
    }  # fmt: skip
    assert (task.dropped, task.silent, task.capacity) == (2, 1, 2)


def test_a_task_ends_early_when_its_first_devices_all_fail_alike():
    task = machine(goal=5, alike=3)
    assign(task, "abc")
    for name in "ab":
        ends = task.drop(name, "computation", Code.INTERNAL, "it failed", 1.0)
        assert [type(effect) for effect in ends] == [DroppedEffect]
    *_, end = task.drop("c", "computation", Code.INTERNAL, "it failed", 1.0)
    assert end == EndEffect(
        TaskState.FAILED,
        Code.INTERNAL,
        "task task ended early, since its first 3 devices all failed alike (computation INTERNAL: "
        "it failed); 3 devices were assigned: 0 contributed, 0 came too late, 3 dropped (3 x "
        "computation INTERNAL), 0 silent",
    )


def test_the_server_s_own_words_on_what_it_cannot_accumulate_are_in_the_message():
    task = machine(goal=5, alike=2)
    for name in "ab":
        (one,) = assign(task, name)
        group, _ = queue(task, one)
        effects = task.accumulated(group, Code.INVALID_ARGUMENT, "shape [3], not [2]", 1.0)
    assert effects[-1].code is Code.INVALID_ARGUMENT
    assert "2 x submit INVALID_ARGUMENT: shape [3], not [2]" in effects[-1].message


def test_a_task_with_a_contribution_does_not_end_early():
    task = machine(goal=9, alike=2)
    one, *_ = assign(task, "abcdef")
    contribute(task, one)
    for name in "bcdef":
        task.drop(name, "computation", Code.INTERNAL, "", 1.0)
    assert task.state is TaskState.OPEN
