"""The lottery keeps the laws of selection policies, and its promise about chances."""

import random

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.policies import Assign, Candidate, OpenTask, Reject, SelectionView
from fcp_core.testing.selection import SelectionPolicyConformance
from fcp_lottery import plugin

(LOTTERY,) = plugin.fcp_register_selection_policies()


class TestLottery(SelectionPolicyConformance):
    factory = LOTTERY
    options = {"chance": 0.5, "pause": 60.0}
    fair = True


def view(candidates, capacity, rng):
    return SelectionView(
        candidates=[Candidate(str(n), arrived=float(n)) for n in range(candidates)],
        tasks=[OpenTask("t", "task", capacity, capacity, created=0.0)],
        now=100.0,
        rng=rng,
    )


@pytest.mark.parametrize("others", [0, 9])
def test_the_chance_does_not_depend_on_the_others(others):
    """30 times 200 draws with chance 0.3: ten standard deviations are 355."""
    policy = plugin.LotteryPolicy(0.3, 60.0)
    rng = random.Random(5)
    wins = draws = 0
    for _ in range(6000 // (others + 1)):
        selection = policy.select(view(others + 1, 100, rng))
        draws += len(selection.decisions)
        wins += sum(isinstance(decision, Assign) for decision in selection.decisions)
    assert draws == 6000
    assert abs(wins - 0.3 * draws) < 355


def test_whoever_does_not_win_is_sent_away_for_the_pause():
    policy = plugin.LotteryPolicy(1.0, 60.0)
    decisions = policy.select(view(5, 2, random.Random(1))).decisions
    rejected = [decision for decision in decisions if isinstance(decision, Reject)]
    assert len(rejected) == 3
    assert {(r.retry.delay_min, r.retry.delay_max) for r in rejected} == {(60, 120)}


def test_who_came_first_does_not_matter_when_there_is_little_room():
    policy = plugin.LotteryPolicy(1.0, 60.0)
    rng = random.Random(3)
    winners = set()
    for _ in range(200):
        decisions = policy.select(view(4, 1, rng)).decisions
        winners |= {d.candidate for d in decisions if isinstance(d, Assign)}
    assert winners == {"0", "1", "2", "3"}


def test_it_is_chosen_by_name(tmp_path):
    def load(**overrides):
        return Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides={"selection": "lottery", "plugins": "fcp_lottery.plugin"} | overrides,
        )

    assert isinstance(load().make_selection_policy(), plugin.LotteryPolicy)
    plugins = load(**{"population:p.selection.lottery.chance": "1.5"})
    with pytest.raises(UsageError, match=r"chance must be above 0 and at most 1, not 1\.5"):
        plugins.for_population("p").make_selection_policy()
