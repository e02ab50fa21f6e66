"""The storage kit is tested by storages that are wrong on purpose."""

import contextlib
import importlib.util
import sqlite3
import sys
from pathlib import Path

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

from fcp_core.storage.contract import StorageError
from fcp_core.testing.storage import StorageConformance

pytestmark = pytest.mark.slow

_PATH = Path(__file__).with_name("broken_storages.py")


@pytest.fixture(scope="module")
def broken():
    spec = importlib.util.spec_from_file_location("broken_storages", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kit_for(make, **flags):
    class Kit(StorageConformance):
        durable = flags.get("durable", False)
        shared = flags.get("shared", False)
        child_factory = flags.get("child_factory")
        can_fail = "disable" in flags
        can_lose_answers = "lose_answers" in flags
        # Shrinking would only make the counterexample prettier.
        settings = hypothesis_settings(
            max_examples=200,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
        )

        def make_storage(self, path):
            return make(path)

        def disable(self, path):
            return flags["disable"](path)

        def lose_answers(self, path):
            return flags["lose_answers"](path)

    return Kit()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("NoRollback", "test_returns_and_raises_what_the_body_does"),
        ("NoRollback", "test_behaves_like_a_dictionary"),
        ("NoRollback", "test_concurrent_transactions_take_turns"),
        ("LostUpdates", "test_concurrent_transactions_take_turns"),
        ("BlindToItself", "test_a_transaction_reads_its_own_writes"),
        ("StoredKeys", "test_a_transaction_reads_its_own_writes"),
        ("StoredKeys", "test_refuses_an_unknown_index"),
        ("Unordered", "test_behaves_like_a_dictionary"),
        ("CutsKeys", "test_behaves_like_a_dictionary"),
        ("Lenient", "test_refuses_an_unknown_index"),
        ("Lazy", "test_writes_while_it_iterates"),
        ("Forgetful", "test_says_whether_it_is_durable"),
        ("OneHost", "test_says_whether_it_is_durable"),
        ("SinceTheStart", "test_tells_its_time"),
        ("BackInTime", "test_tells_its_time"),
    ],
)
def test_the_kit_finds_in_memory(broken, tmp_path, name, check):
    kit = kit_for(lambda path: getattr(broken, name)())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(kit, check)(tmp_path)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("StaleIndex", "test_a_transaction_reads_its_own_writes"),
        ("StaleIndex", "test_behaves_like_a_dictionary"),
        ("StaleIndex", "test_keeps_what_the_server_keeps"),
        ("HalfTransactions", "test_returns_and_raises_what_the_body_does"),
    ],
)
def test_the_kit_finds_in_files(broken, tmp_path, name, check):
    kit = kit_for(getattr(broken, name), durable=True)
    with pytest.raises(AssertionError):
        getattr(kit, check)(tmp_path)


def test_the_kit_finds_what_a_restart_forgets(broken, tmp_path):
    kit = kit_for(lambda path: broken.Forgetful(), durable=True)
    with pytest.raises(AssertionError):
        kit.test_reads_what_an_earlier_release_wrote(tmp_path)
    with pytest.raises(AssertionError):
        kit.test_behaves_like_a_dictionary(tmp_path)


def test_the_kit_finds_answers_that_a_kill_loses(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(_PATH.parent), *sys.path])
    kit = kit_for(broken.EarlyAnswers, durable=True, child_factory="broken_storages:EarlyAnswers")
    with pytest.raises(AssertionError, match="an answered transaction is lost"):
        kit.test_survives_a_kill(tmp_path, 25)


def test_the_kit_finds_updates_that_another_process_loses(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(_PATH.parent), *sys.path])
    kit = kit_for(
        broken.NoWaiting, durable=True, shared=True, child_factory="broken_storages:NoWaiting"
    )
    with pytest.raises(AssertionError):
        kit.test_is_shared_by_processes(tmp_path)


@pytest.mark.parametrize("how", ["absent", "selected"])
def test_the_kit_finds_what_changes_after_it_was_read(broken, tmp_path, monkeypatch, how):
    monkeypatch.setattr(sys, "path", [str(_PATH.parent), *sys.path])
    kit = kit_for(
        broken.OnlyWrites, durable=True, shared=True, child_factory="broken_storages:OnlyWrites"
    )
    with pytest.raises(AssertionError, match=f"by what was {how}"):
        kit.test_what_was_read_holds(tmp_path, how)


@pytest.mark.parametrize(
    ("name", "error"), [("StaleLock", StorageError), ("HalfTransactions", AssertionError)]
)
def test_the_kit_finds_what_a_killed_process_leaves(broken, tmp_path, monkeypatch, name, error):
    monkeypatch.setattr(sys, "path", [str(_PATH.parent), *sys.path])
    made = getattr(broken, name)
    kit = kit_for(made, durable=True, shared=True, child_factory=f"broken_storages:{name}")
    with pytest.raises(error):
        kit.test_a_process_that_is_killed_holds_nobody_up(tmp_path)


def test_the_kit_finds_a_clock_of_ones_own(broken, tmp_path):
    kit = kit_for(broken.OwnClock, durable=True, shared=True)
    with pytest.raises(AssertionError, match="one of two storages is late"):
        kit.test_tells_everybody_the_same_time(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("RepeatsBlindly", "happened 2 times"), ("SaysItIsDone", "was answered and is lost")],
)
def test_the_kit_finds_guesses_about_lost_answers(broken, tmp_path, monkeypatch, name, words):
    made = getattr(broken, name)

    @contextlib.contextmanager
    def lose_answers(path):
        with monkeypatch.context() as patch:
            patch.setattr(made, "deaf", True)
            yield

    kit = kit_for(made, durable=True, lose_answers=lose_answers)
    with pytest.raises(AssertionError, match=words):
        kit.test_an_answer_that_is_lost_is_no_second_write(tmp_path)


@pytest.mark.parametrize(
    ("name", "error"), [("DriversWords", AssertionError), ("GivesUp", RuntimeError)]
)
def test_the_kit_finds_faults_that_a_storage_makes_of_faults(broken, tmp_path, name, error):
    @contextlib.contextmanager
    def locked(path):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield

    kit = kit_for(getattr(broken, name), durable=True, disable=locked)
    with pytest.raises(error):
        kit.test_fails_in_the_contracts_words(tmp_path)


def test_a_durable_storage_must_be_makeable_elsewhere(tmp_path):
    kit = kit_for(lambda path: None, durable=True)
    with pytest.raises(pytest.fail.Exception, match="child_factory"):
        kit.test_survives_a_kill(tmp_path, 1)
