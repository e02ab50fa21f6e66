"""Uploads go where least is to be done, whatever an upload and all else take."""

import pytest

from fcp_core.server.processes.placing import RUN, Placing, Share

SIZE = 4_000_000
ROOM = 64 * SIZE


def rounds(uploads, *, members=3, count=40, calls=4.0, upload=5.0, room=ROOM, beside=()):
    """Let an owner, the first, place so many uploads between two beats; return what each used then.

    It is the mean of the later half, since uploads are placed in runs.

    :param calls: what the owner needs for each device, in milliseconds.
    :param upload: what whoever receives an upload needs for it.
    :param beside: what members do for others, each time.
    """
    shares = {str(number): Share() for number in range(members)}
    placing, used, half = Placing(), dict.fromkeys(shares, 0.0), {}
    for number in range(count):
        if 2 * number == count:
            half = dict(used)
        for key, share in shares.items():
            share.told(room, used[key])
        placing.learn(shares)
        for key, milliseconds in beside:
            used[key] += milliseconds / 1000
        for _ in range(uploads):
            used["0"] += calls / 1000
            used[placing.choose(shares, SIZE)] += upload / 1000
    return [round(2000 / count * (used[key] - half[key]), 3) for key in shares]


def test_an_owner_with_many_calls_receives_little():
    owner, *others = rounds(30)
    assert owner == 120
    assert others == pytest.approx([75, 75], abs=2)


def test_what_is_dear_to_receive_is_received_by_all():
    found = rounds(30, upload=40.0)
    assert round(sum(found)) == 30 * 44
    assert max(found) - min(found) <= 40


def test_with_one_other_member_the_owner_takes_its_part():
    assert max(rounds(40, members=2, calls=1.0)) <= 125


def test_who_has_more_to_do_is_spared():
    busy = rounds(40, calls=1.0, beside=[("1", 150.0)])
    assert busy[1] <= 155
    assert max(busy) == busy[1]


def test_uploads_come_in_runs_so_that_writes_are_shared():
    placing, shares = Placing(), {key: Share() for key in "abc"}
    for share in shares.values():
        share.told(ROOM, 1.0)
    sent = "".join(placing.choose(shares, SIZE) for _ in range(3 * RUN))
    assert sorted(sent[::RUN]) == ["a", "b", "c"]
    assert sent == "".join(key * RUN for key in sent[::RUN])
    shares["a"].free = 0
    assert placing.choose({key: shares[key] for key in "ab"}, SIZE) == "b"


@pytest.mark.parametrize("room", [0, SIZE])
def test_where_there_is_little_room_all_take_as_many(room):
    found = rounds(30, room=room)
    assert found == [170, 50, 50]
