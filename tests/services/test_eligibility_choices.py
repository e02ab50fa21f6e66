"""Who is asked what, and who is given what: by population, by task, and across restarts."""

import asyncio
import gzip

import pytest
from msgspec import msgpack

from fcp_core.errors import UsageError
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_core.rounds.policies import EligibilityPolicy, EligibilityPolicyFactory
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.storage.records import EligibilityTaskRecord
from tests.services.eligibility_plans import DATA, asked


def plan():
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    return message.SerializeToString()


FULL = EligibilityTask(
    plan(),
    b"input",
    name="mine",
    arguments=b"17",
    task_names=["train"],
    policies=[
        PolicyChoice("data_availability", {**DATA, "min_example_count": "3"}, ["train", "test"]),
        PolicyChoice("sampling_without_replacement", {"min_period": "2h"}),
    ],
    covers=["data_availability"],
)


def test_an_eligibility_task_brings_policies_with_options(kit):
    async def main():
        async with kit.world() as world:
            await world.services.eligibility_tasks.set(kit.population, FULL)
            for name in ("train", "test", "other"):
                await world.submit(name=name)
            device = world.device()
            response = await device.check_in()
            assert asked(device, response) == {
                "train": {"mine", "data_availability", "sampling_without_replacement"},
                "test": {"data_availability", "sampling_without_replacement"},
                "other": {"sampling_without_replacement"},
            }
            policies = {p.name: p for p in device.spec(response).eligibility_policies}
            assert policies["mine"].tf_custom_policy.arguments == b"17"
            assert policies["data_availability"].data_availability_policy.min_example_count == 3
            swor = policies["sampling_without_replacement"].swor_policy
            assert swor.min_period.seconds == 7200
            # One that sends no weights is not given any of them.
            assert device.answer(await device.start()).HasField("rejection_info")

    asyncio.run(main())


def test_a_restart_keeps_eligibility_tasks(kit, tmp_path):
    def world(**overrides):
        path = str(tmp_path / "fcp.sqlite")
        return kit.world(storage="sqlite", storage__sqlite__path=path, **overrides)

    async def main():
        async with world() as first:
            tasks = first.services.eligibility_tasks
            before = await tasks.set(kit.population, EligibilityTask(policies=FULL.policies))
            assert tasks.list() == [before]
            before = await tasks.set(kit.population, FULL)
            assert tasks.list() == [before]
        async with world() as second:
            tasks = second.services.eligibility_tasks
            assert tasks.list() == [before]
            await second.submit(name="train")
            device = second.device()
            assert "mine" in asked(device, await device.check_in())["train"]
            assert (await device.check_in()).eligibility_eval_task.plan.uri
            assert await tasks.remove(kit.population) == before
        async with world() as third:
            assert third.services.eligibility_tasks.list() == []
            found = await third.services._storage.transact(
                lambda tx: list(tx.select(EligibilityTaskRecord))
            )
            assert found == []
            device = third.device()
            # The task is the one of before, and nobody is asked any more.
            assert (await device.assignment()).task_name == "train"

    asyncio.run(main())


def test_changes_at_the_same_time_leave_what_is_stored_in_use(kit, tmp_path):
    storage = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}

    async def main():
        async with kit.world(**storage) as world:
            tasks = world.services.eligibility_tasks

            def change(number):
                if number % 3 == 2:
                    return kit.code_of(tasks.remove(kit.population))
                choice = PolicyChoice("minimum_separation", {"current_index": number})
                return tasks.set(kit.population, EligibilityTask(policies=[choice]))

            for count in range(1, 7):
                await asyncio.gather(*map(change, range(count)))
                stored = await world.services._storage.transact(
                    lambda tx: tx.get(EligibilityTaskRecord, kit.population)
                )
                in_use = tasks.list()
                assert (stored is None) is (in_use == [])
                if stored is not None:
                    (found,) = in_use
                    (choice,) = found.task.policies
                    index = choice.options["current_index"]
                    assert index == count - 1
                    assert msgpack.decode(stored.spec)["policies"][0]["options"] == choice.options

    asyncio.run(main())


def test_an_eligibility_task_whose_plugin_is_gone_stops_the_start(kit, tmp_path):
    class Plugin:
        def fcp_register_eligibility_policies(self):
            return [EligibilityPolicyFactory("lunar", "x", lambda options: EligibilityPolicy())]

    from fcp_core.plugins import hookimpl

    Plugin.fcp_register_eligibility_policies = hookimpl(Plugin.fcp_register_eligibility_policies)
    storage = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}

    async def main():
        async with kit.world(extra=[Plugin()], **storage) as world:
            task = EligibilityTask(policies=[PolicyChoice("lunar")])
            await world.services.eligibility_tasks.set(kit.population, task)
        with pytest.raises(UsageError, match=r"phones/all, of an earlier run.*'lunar'"):
            async with kit.world(**storage):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (PolicyChoice("data_availabilty"), "Did you mean 'data_availability'"),
        (PolicyChoice("data_availability", {"min_count": 1}), "there is no such option"),
        (PolicyChoice("data_availability", {"min_example_count": 0}), "at least 1"),
        (PolicyChoice("sampling_without_replacement", {"group_regex": "("}), "regular expression"),
        (PolicyChoice("data_availability", {"collection_uri": {1, 2}}), "collection_uri"),
        (PolicyChoice("minimum_separation", {"current_index": 2**80}), "numbers"),
    ],
)
def test_a_policy_that_cannot_be_made_changes_nothing(kit, choice, message):
    async def main():
        async with kit.world() as world:
            tasks = world.services.eligibility_tasks
            before = await tasks.set(kit.population, FULL)
            with pytest.raises(StatusError, match=message) as caught:
                await tasks.set(kit.population, EligibilityTask(policies=[choice]))
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert tasks.list() == [before]

    asyncio.run(main())


def test_a_population_that_tasks_bring_is_brought_by_an_eligibility_task_too(kit):
    async def main():
        async with kit.world(populations=None) as world:
            await world.services.eligibility_tasks.set(kit.population, FULL)
            # It is known now: a device is sent away for a while, not for hours.
            assert (await world.device().check_in()).HasField("rejection_info")

    asyncio.run(main())


def test_a_device_that_evaluates_no_policies_gets_the_plan_alone(kit):
    async def main():
        async with kit.world() as world:
            tasks = world.services.eligibility_tasks
            covered = PolicyChoice("data_availability", DATA, ["train"])
            native = PolicyChoice("sampling_without_replacement", task_names=["native"])
            await tasks.set(
                kit.population,
                EligibilityTask(
                    plan(),
                    b"input",
                    task_names=["train", "plan", "native", "many"],
                    policies=[covered, native],
                    covers=["data_availability"],
                ),
            )
            for name in ("train", "plan", "native", "free"):
                await world.submit(5, name=name)
            await world.submit(5, name="many", assignment_mode=AssignmentMode.MULTIPLE)
            await world.submit(5, name="free_many", assignment_mode=AssignmentMode.MULTIPLE)

            device = world.device(native=False, multiple=True)
            given = (await device.check_in()).eligibility_eval_task
            assert given.plan.uri
            assert given.init_checkpoint.uri
            assert not given.HasField("population_eligibility_spec")
            (checked_in,) = world.recorder.of("CheckedIn")
            assert checked_in.offered == ("free", "plan", "train")
            # The plan may say what it likes of a task that it does not decide about alone.
            operation = await device.start({"native": 1.0, "plan": 0.5, "train": 0.0, "free": 0.0})
            assert device.answer(operation).task_assignment.task_name == "plan"

            async def gets(weights):
                found = await world.device(native=False).assignment(weights)
                return None if found is None else found.task_name

            assert await gets({"train": 1.0, "native": 1.0}) == "train"
            assert await gets({"native": 1.0, "train": 0.0, "plan": 0.0}) == "free"
            assert await gets(None) == "free"
            # One that evaluates policies is offered everything.
            device = world.device(multiple=True)
            assert set(asked(device, await device.check_in())) == {
                *("train", "plan", "native", "free", "many", "free_many")
            }

            await tasks.set(kit.population, EligibilityTask(plan(), b"x", policies=[native]))
            await tasks.remove(kit.population)
            plain = world.device(native=False, multiple=True)
            assert set(asked(plain, await plain.check_in())) >= {"native", "many"}

    asyncio.run(main())


def test_a_plan_that_was_replaced_can_still_be_fetched_for_a_while(kit):
    async def main():
        async with kit.world(session_timeout="10m") as world:
            tasks = world.services.eligibility_tasks
            await tasks.set(kit.population, FULL)
            await world.submit(name="train")
            uri = (await world.device().check_in()).eligibility_eval_task.plan.uri
            name = uri.partition("/data/")[2]
            await tasks.set(kit.population, FULL)
            media = world.services.media
            assert (await world.device().check_in()).eligibility_eval_task.plan.uri != uri
            world.advance(599)
            await media.download(name)
            world.advance(2)
            assert await kit.code_of(media.download(name)) is Code.FAILED_PRECONDITION

    asyncio.run(main())


def test_a_task_names_policies_of_its_own(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(2, name="plain")
            options = {"data_availability": DATA, "minimum_separation": {"current_index": 4}}
            await world.submit(
                2,
                name="picky",
                eligibility=["data_availability", "minimum_separation"],
                options=options,
            )
            device = world.device()
            response = await device.check_in()
            assert asked(device, response) == {
                "plain": set(),
                "picky": {"data_availability", "minimum_separation"},
            }
            separation = device.spec(response).eligibility_policies[1].min_sep_policy
            assert separation.current_index == 4
            assert (await world.device().assignment()).task_name == "plain"
            found = await world.device().assignment({"plain": 0.0, "picky": 1.0})
            assert found.task_name == "picky"
            assert await kit.code_of(world.submit(eligibility=["tides"])) is Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_a_task_of_the_configuration_wins_over_its_population(kit):
    sections = {
        "population:phones/all.eligibility": "sampling_without_replacement",
        "task:picky.eligibility": "data_availability",
        "task:picky.eligibility.data_availability.collection_uri": "app:/taps",
        "task:anyone.eligibility": "",
    }

    async def main():
        async with kit.world(**sections) as world:
            for name in ("plain", "picky", "anyone"):
                await world.submit(name=name)
            device = world.device()
            assert asked(device, await device.check_in()) == {
                "plain": {"sampling_without_replacement"},
                "picky": {"data_availability"},
                "anyone": set(),
            }
            assert (await world.device().assignment()).task_name == "anyone"

    asyncio.run(main())


@pytest.mark.parametrize("inline", ["0", "1MiB"])
def test_the_plan_tells_the_index_that_the_device_remembers(kit, inline):
    """Without it, a device would be eligible for ever: it has no index to count from."""

    async def main():
        options = {"eligibility": "minimum_separation", "inline_resources_below": inline}
        async with kit.world(**options) as world:
            plan_of = plan_pb2.ClientOnlyPlan
            data = plan_of(graph=b"graph " * 999).SerializeToString()

            async def index(name):
                given = world.device()
                response = await given.check_in()
                spec = given.spec(response)
                (info,) = [info for info in spec.task_info if info.task_name == name]
                policy = spec.eligibility_policies[info.eligibility_policy_indices[0]]
                found = given.answer(await given.start({name: 1.0})).task_assignment
                resource = found.plan
                if resource.uri:
                    media = await world.services.media.download(resource.uri.partition("/data/")[2])
                    plan = plan_of.FromString(gzip.decompress(media.data))
                    assert resource.client_cache_id == media.etag
                else:
                    plan = plan_of.FromString(gzip.decompress(resource.inline_resource.data))
                assert plan.graph == b"graph " * 999
                assert plan.HasField("client_persisted_data")
                remembered = plan.client_persisted_data.min_sep_policy_index
                assert remembered == policy.min_sep_policy.current_index
                return remembered

            await world.submit(9, name="hourly", plan=data)
            first = await index("hourly")
            assert first == world.clock.now() // 3600
            world.advance(3600)
            await world.submit(9, name="hourly", plan=data)
            assert await index("hourly") == first + 1
            own = {"minimum_separation": {"current_index": 0}}
            await world.submit(9, name="counted", plan=data, options=own)
            assert await index("counted") == 0

    asyncio.run(main())


def test_a_plan_is_as_it_was_sent_where_no_index_is_asked_for(kit):
    async def main():
        async with kit.world(inline_resources_below="1MiB") as world:
            await world.submit(plan=b"any bytes")
            found = await world.device().assignment()
            assert gzip.decompress(found.plan.inline_resource.data) == b"any bytes"

    asyncio.run(main())
