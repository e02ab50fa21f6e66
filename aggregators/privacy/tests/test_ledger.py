"""The ledger: what events come to, what is allowed, booked and refused."""

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code
from fcp_core.rounds.ledger import Account, Planned, ReleaseRefusedError
from fcp_core.rounds.tasks import TaskSpec
from fcp_privacy import watermark
from fcp_privacy.account import Balance
from fcp_privacy.accounting import rho_epsilon
from fcp_privacy.events import (
    ZCDP,
    Composed,
    EpsilonDelta,
    Gaussian,
    Laplace,
    PoissonSampled,
    Series,
    from_cost,
    spent,
    to_cost,
)
from fcp_privacy.ledger import PrivacyLedger
from fcp_privacy.plugin import PrivacyPlugin

POPULATION = "phones/all"
SPEC = TaskSpec(POPULATION, "t", plan=b"", aggregation=b"", goal_count=2)
#: Noon of the first day of 2026.
NOON = 1767268800.0


def ledger(tmp_path, **options):
    overrides = {f"privacy.{name}": str(value) for name, value in options.items()}
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        entry_points=[],
        extra=[PrivacyPlugin()],
        overrides={**overrides, "storage": "memory"},
        modules=["fcp_aggregators.plugin", "fcp_plugins.plugin"],
    )
    return PrivacyLedger(plugins.config)


def planned(*events, exact=(), created=NOON):
    return Planned(SPEC, created, tuple(map(to_cost, events)), exact)


class Book:
    """A ledger with accounts, as a storage keeps them."""

    def __init__(self, of):
        self.of = of
        self.accounts = {}

    def check(self, plan, *others):
        return " ".join(self.of.check(plan, self._read(plan), others))

    def book(self, *events, **fields):
        plan = planned(*events, **fields)
        for name, data in self.of.book(plan, self._read(plan)).items():
            version = self._read(plan)[name].version
            self.accounts[name] = Account(name, version + 1, data)

    def balance(self, name=f"privacy/{POPULATION}/device"):
        return Balance.read(self.accounts[name].data)

    def _read(self, plan):
        return {n: self.accounts.get(n, Account(n)) for n in self.of.accounts(plan)}


@pytest.fixture
def book(tmp_path):
    return lambda **options: Book(ledger(tmp_path, **options))


# What events come to.


def test_gaussians_compose_as_zcdp():
    total = spent([Gaussian(2.0)] * 8)
    assert total.rho == pytest.approx(1.0)
    assert total.at(1e-6) == pytest.approx(7.766, abs=1e-3)
    assert total.at(1e-10) == pytest.approx(10.034, abs=1e-3)


def test_pure_epsilons_are_summed_or_taken_as_zcdp_whichever_is_less():
    few, many = spent([Laplace(1.0)]), spent([Laplace(10.0)] * 1000)
    assert few.at(1e-6) == 1.0
    assert many.at(1e-6) == pytest.approx(rho_epsilon(1000 * 0.01 / 2, 1e-6))
    assert many.at(1e-6) < 100


def test_deltas_are_spent_too():
    total = spent([EpsilonDelta(1.0, 5e-7), EpsilonDelta(0.5, 4e-7), Gaussian(10.0)])
    assert total.at(1e-6) == pytest.approx(1.5 + rho_epsilon(0.005, 1e-7))
    assert total.at(8e-7) == math.inf
    assert total.as_rho() == math.inf


def test_where_one_is_replaced_by_another_it_costs_as_two():
    events = [Gaussian(1.0), Laplace(1.0), EpsilonDelta(1.0, 1e-8)]
    total = spent(events, relation="replace_one")
    assert (total.rho, total.pure, total.epsilon) == (2.0, (2.0,), 2.0)
    assert total.delta == pytest.approx(1e-8 * (1 + math.e))
    stated = Gaussian(1.0, relation="replace_one")
    assert spent([stated], relation="replace_one") == spent([stated])


@pytest.mark.parametrize(
    "cost",
    [{"type": "nothing"}, {}, {"type": "gaussian"}, {"type": "zcdp", "rho": "much"}],
)
def test_what_is_no_event_is_refused(cost):
    with pytest.raises(ValueError, match="no event"):
        from_cost(cost)


def test_an_event_is_the_same_after_a_trip():
    event = Composed((Series("s", ZCDP(0.5)), Gaussian(1.0, relation="replace_one")))
    assert from_cost(to_cost(event)) == event


@pytest.mark.tff
def test_epsilons_are_those_of_dp_accounting():
    import dp_accounting

    for multiplier, count in ((1.0, 1), (2.0, 10), (5.0, 1000)):
        accountant = dp_accounting.rdp.RdpAccountant(
            orders=[1 + x / 50 for x in range(1, 400)] + list(range(9, 2000))
        )
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier), count)
        ours = spent([Gaussian(multiplier)]).times(count).at(1e-6)
        assert ours == pytest.approx(accountant.get_epsilon(1e-6), abs=1e-3 * ours)


@pytest.mark.tff
def test_sampled_events_are_computed_by_dp_accounting():
    balance = Balance("device", "zero_out")
    for _ in range(1000):
        balance = balance.with_events([PoissonSampled(0.01, Gaussian(1.0))])
    assert balance.spent("zero_out", 1e-6).at(1e-6) == pytest.approx(2.437, abs=0.01)


# What is allowed.


def test_a_budget_is_a_budget(book):
    it = book(epsilon=5.222, delta=1e-6)
    for _ in range(4):
        assert it.check(planned(Gaussian(2.0))) == ""
        it.book(Gaussian(2.0))
    refusal = it.check(planned(Gaussian(2.0)))
    assert "from epsilon 5.222 at delta 1e-06" in refusal
    assert "budget is epsilon 5.222" in refusal
    with pytest.raises(ReleaseRefusedError, match="used up") as caught:
        it.book(Gaussian(2.0))
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert it.balance().releases == 4
    # Of what is left, less can be had.
    it.book(Gaussian(1000.0))


def test_open_tasks_count_when_another_is_submitted(book):
    it = book(rho=1.0)
    one = planned(ZCDP(0.6))
    assert it.check(planned(ZCDP(0.6))) == ""
    assert "beyond" not in it.check(planned(ZCDP(0.3)), one)
    assert "budget is rho 1" in it.check(planned(ZCDP(0.6)), one)


def test_results_without_noise_are_refused_where_there_is_a_budget(book):
    it = book(epsilon=1)
    assert "demands differential privacy" in it.check(planned(exact=("krum",)))
    assert "krum" in it.check(planned(exact=("krum",)))
    off = EpsilonDelta(1e20, 1e-9)
    assert "means that there is no noise" in it.check(planned(off))
    assert "means that there is no noise" in it.check(planned(Composed((off, off))))
    assert book().check(planned(exact=("krum",))) == ""
    assert "demands" in book(required=True).check(planned(exact=("krum",)))
    assert book(epsilon=1, required=False).check(planned(exact=("krum",))) == ""


def test_noise_that_a_program_adds_is_booked_where_programs_are_trusted(book):
    costs = [to_cost(Gaussian(2.0))]
    plan = replace(planned(Gaussian(2.0), exact=("federated_sum",)), spec=SPEC.replace(costs=costs))
    assert "takes nobody's word for it" in book(rho=1).check(plan)
    trusting = book(rho=0.2, trust_programs=True)
    assert trusting.check(plan) == ""
    assert "budget is rho 0.2" in trusting.check(plan, plan)
    assert book().check(plan) == ""  # nothing is demanded
    assert "is no event" in book().check(replace(plan, costs=({"type": "magic"},)))


def test_results_with_and_without_noise_are_not_mixed(book):
    refusal = book().check(planned(Gaussian(1.0), exact=("federated_weighted_mean", "krum")))
    assert "federated_weighted_mean, krum would be released without noise" in refusal


def test_one_task_may_cost_so_much(book):
    it = book(max_epsilon=2, delta=1e-6)
    assert it.check(planned(Gaussian(5.0))) == ""
    assert "one task may cost 2 here" in it.check(planned(Gaussian(1.0)))


def test_a_series_costs_what_all_its_rounds_cost(book):
    it = book(rho=1.0)
    it.book(Series("s", ZCDP(0.4)))
    it.book(Series("s", ZCDP(0.5)))
    it.book(Series("t", ZCDP(0.1)))
    assert it.balance().spent("zero_out", 1e-6).rho == pytest.approx(0.6)
    assert it.balance().releases == 3
    # One that begins anew costs both.
    it.book(Series("s", ZCDP(0.2)))
    assert it.balance().spent("zero_out", 1e-6).rho == pytest.approx(0.8)
    it.book(Series("s", ZCDP(0.3)))
    assert it.balance().spent("zero_out", 1e-6).rho == pytest.approx(0.9)


def test_equal_events_are_one_line(book):
    it = book()
    for _ in range(50):
        it.book(Gaussian(3.0))
    assert [line.count for line in it.balance().lines] == [50]


def test_days_have_budgets_of_their_own(book):
    it = book(rho=1.0, unit="device-day")
    it.book(ZCDP(0.9))
    with pytest.raises(ReleaseRefusedError):
        it.book(ZCDP(0.9))
    it.book(ZCDP(0.9), created=NOON + 86400)
    assert sorted(it.accounts) == [
        f"privacy/{POPULATION}/device-day/2026-01-01",
        f"privacy/{POPULATION}/device-day/2026-01-02",
    ]


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(UsageError, match="budget in epsilon already"):
        ledger(tmp_path, epsilon=1, rho=1)
    with pytest.raises(UsageError, match="with 1000000 devices"):
        ledger(tmp_path, delta=1e-6, population_size=1_000_000)
    with pytest.raises(UsageError, match="delta must be above 0"):
        ledger(tmp_path, delta=0)


def test_a_population_has_a_budget_of_its_own(tmp_path):
    (tmp_path / "fcp.cfg").write_text(
        "[fcp:privacy]\nepsilon = 8\n"
        "[fcp:population:phones/beta]\nprivacy.epsilon = 2\nprivacy.unit = device-day\n"
    )
    it = ledger(tmp_path)
    assert (it.policy(POPULATION).epsilon, it.policy(POPULATION).unit) == (8, "device")
    assert (it.policy("phones/beta").epsilon, it.policy("phones/beta").unit) == (2, "device-day")


@pytest.mark.parametrize(("storage", "warned"), [("memory", True), ("sqlite", False)])
def test_a_budget_that_is_forgotten_is_warned_of(tmp_path, caplog, storage, warned):
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        entry_points=[],
        extra=[PrivacyPlugin()],
        overrides={"privacy.rho": "1", "storage": storage},
        modules=["fcp_aggregators.plugin", "fcp_plugins.plugin"],
    )
    asyncio.run(plugins.startup())
    assert ("forgets with the process" in caplog.text) is warned


@pytest.mark.parametrize("mark", ["", "missing/ledger.mark"])
def test_a_watermark_that_could_not_be_written_is_refused_at_the_start(tmp_path, mark):
    plugin = PrivacyPlugin()
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        entry_points=[],
        extra=[plugin],
        overrides={"privacy.watermark": str(tmp_path / mark)},
        modules=["fcp_aggregators.plugin", "fcp_plugins.plugin"],
    )
    with pytest.raises(UsageError, match=r"watermark of the privacy ledger .* cannot be written"):
        plugin.fcp_startup(plugins.config)


# A ledger that went back.


def test_a_restored_backup_is_noticed(book, tmp_path):
    mark = tmp_path / "ledger.mark"
    it = book(watermark=mark)
    it.of.verify(POPULATION, {})
    it.book(ZCDP(0.1))
    it.of.booked(POPULATION, it.accounts)
    backup = dict(it.accounts)
    for _ in range(2):
        it.book(ZCDP(0.1))
        it.of.booked(POPULATION, it.accounts)
    it.of.verify(POPULATION, it.accounts)
    with pytest.raises(UsageError, match=r"3 releases were booked .* storage has 1"):
        it.of.verify(POPULATION, backup)
    with pytest.raises(UsageError, match="storage has 0"):
        it.of.verify(POPULATION, {})
    it.of.verify("phones/others", {})
    it.accounts = backup
    assert "taken back" in it.check(planned(ZCDP(0.1)))


def test_a_watermark_is_not_lost_where_tasks_end_at_once(tmp_path):
    mark, names = tmp_path / "ledger.mark", [f"privacy/phones/{number}" for number in range(8)]

    def note(name):
        for version in range(1, 21):
            watermark.write(mark, {name: Account("", version)})

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(note, names))
    assert json.loads(mark.read_text()) == dict.fromkeys(names, 20)


def test_a_new_day_is_no_ledger_that_went_back(book, tmp_path):
    it = book(watermark=tmp_path / "ledger.mark", unit="device-day")
    it.book(ZCDP(0.1))
    it.of.booked(POPULATION, it.accounts)
    assert it.check(planned(ZCDP(0.1), created=NOON + 86400)) == ""


def test_a_ledger_keeps_its_relation(book):
    it = book()
    it.book(ZCDP(0.1))
    with pytest.raises(UsageError, match="kept for the relation zero_out"):
        book(relation="replace_one").of.verify(POPULATION, it.accounts)
