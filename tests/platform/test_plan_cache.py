"""Lowered computations that are kept between runs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.protos import plan_pb2
from fcp_platform import FederatedComputation, FederatedContext, lowered_bytes, plans
from fcp_platform.plan_cache import PlanCache, default_folder

pytestmark = [pytest.mark.tff, pytest.mark.slow]

EXAMPLES = tff.SequenceType(np.str_)


def adding(constant: int) -> Any:
    """Return a computation: the number of examples, and a constant, are added to the state."""

    @tff.tensorflow.computation(EXAMPLES, np.int32)
    def work(examples: Any, state: Any) -> Any:
        return state + constant + examples.reduce(np.int32(0), lambda n, _: n + 1)

    @tff.federated_computation(
        tff.FederatedType(np.int32, tff.SERVER), tff.FederatedType(EXAMPLES, tff.CLIENTS)
    )
    def comp(state: Any, data: Any) -> Any:
        update = tff.federated_map(work, (data, tff.federated_broadcast(state)))
        return tff.federated_sum(update), tff.federated_sum(update)

    return comp


def selecting() -> Any:
    """Return a computation with everything that lowering makes something of."""

    @tff.tensorflow.computation(tff.StructType([("words", (np.str_, [3]))]), np.int32)
    def choose(value: Any, key: Any) -> Any:
        return value["words"][key]

    @tff.tensorflow.computation(EXAMPLES)
    def keys(examples: Any) -> Any:
        return tf.stack([examples.reduce(np.int32(0), lambda n, _: n + 1) % 3])

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def total(slices: Any) -> Any:
        return tf.cast(slices.reduce(np.int64(0), lambda n, _: n + 1), tf.complex64)

    @tff.federated_computation(
        tff.FederatedType(tff.StructType([("words", (np.str_, [3]))]), tff.SERVER),
        tff.FederatedType(EXAMPLES, tff.CLIENTS),
    )
    def comp(state: Any, data: Any) -> Any:
        slices = tff.federated_select(
            tff.federated_map(keys, data),
            tff.federated_value(np.int32(2), tff.SERVER),
            state,
            choose,
        )
        return state, tff.federated_sum(tff.federated_map(total, slices))

    return comp


def plan_of(computation: FederatedComputation) -> bytes:
    selector = plan_pb2.ExampleSelector(collection_uri="app:/x")
    return plans.build_plan(computation.lowered, [selector]).SerializeToString(deterministic=True)


@pytest.mark.parametrize("make", [lambda: adding(1), selecting], ids=["adding", "selecting"])
def test_what_comes_back_is_what_was_kept(make: Any) -> None:
    computation = FederatedComputation(make(), name="x")
    data = lowered_bytes.dumps(computation.lowered)
    back = lowered_bytes.loads(data)
    assert lowered_bytes.dumps(back) == data
    again = FederatedComputation(make(), name="x")
    again.__dict__["lowered"] = back
    assert plan_of(again) == plan_of(computation)
    for bad in (data[:-1], b"", b"\xc0", data[: len(data) // 2]):
        with pytest.raises(ValueError, match="no lowered computation"):
            lowered_bytes.loads(bad)


def test_a_computation_is_lowered_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcp_platform import computation as module

    lowerings = []
    lower = module.lowering.lower
    monkeypatch.setattr(
        module.lowering, "lower", lambda *given: lowerings.append(1) or lower(*given)
    )
    cache = PlanCache(tmp_path / "a" / "b")
    comp = adding(1)
    first, second = (FederatedComputation(comp, name=name) for name in "xy")
    for made in (first, second, second):
        made.lower(cache)
    assert len(lowerings) == 1
    assert plan_of(first) == plan_of(second)
    FederatedComputation(adding(2), name="x").lower(cache)
    assert len(lowerings) == 2
    FederatedComputation(comp, name="x").lower(None)
    assert len(lowerings) == 3
    assert len(list(cache.folder.iterdir())) == 2


def test_damage_is_found(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = PlanCache(tmp_path)
    comp = adding(1)
    FederatedComputation(comp, name="x").lower(cache)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    for bad in (good[:-1], b"", good[:40] + b"x" + good[41:], good[:32]):
        path.write_bytes(bad)
        assert cache.get(comp) is None
        assert "is damaged" in caplog.text
        caplog.clear()
    FederatedComputation(comp, name="x").lower(cache)
    assert path.read_bytes() == good
    assert cache.get(comp) is not None


def test_a_folder_that_cannot_be_used_changes_nothing(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    computation = FederatedComputation(adding(1), name="x")
    computation.lower(PlanCache(tmp_path / "file" / "folder"))
    assert computation.lowered


def test_programs_that_write_at_the_same_time(tmp_path: Any) -> None:
    computation = FederatedComputation(adding(1), name="x")
    lowered = computation.lowered
    with ThreadPoolExecutor(4) as pool:
        caches = [PlanCache(tmp_path) for _ in range(8)]
        list(pool.map(lambda c: c.put(computation.wrapped_computation, lowered), caches))
        found = list(pool.map(lambda c: c.get(computation.wrapped_computation), caches))
    assert None not in found
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_bounded(tmp_path: Any) -> None:
    comps = [adding(n) for n in range(3)]
    lowered = FederatedComputation(comps[0], name="x").lowered
    size = 32 + len(lowered_bytes.dumps(lowered))
    cache = PlanCache(tmp_path, max_bytes=2 * size)
    for age, comp in zip((300, 200), comps[:2], strict=True):
        cache.put(comp, lowered)
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert cache.get(comps[0]) is not None  # used now, so that the other is the older one
    cache.put(comps[2], lowered)
    assert [cache.get(comp) is not None for comp in comps] == [True, False, True]
    PlanCache(tmp_path, max_bytes=0).put(comps[1], lowered)
    assert [cache.get(comp) is not None for comp in comps] == [False, True, False]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fcp" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "fcp" / "plans"


@pytest.mark.parametrize("given", ["", None, "here"])
def test_a_context_has_one_unless_it_is_told_not_to(
    given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = {"": default_folder(), "here": tmp_path / "here"}.get(given or "")
    named = str(tmp_path / given) if given else given
    context = FederatedContext("population", plan_cache=named)
    computation = FederatedComputation(adding(7), name="x")
    context.lower(computation)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in kept] == ([folder] if given is not None else [])
    with context:
        pass
