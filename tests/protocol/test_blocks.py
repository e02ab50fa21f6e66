"""Blocks of memory: what is given back of them, and what stays readable."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fcp_core.protocol.blocks import BlockFile, block_of, rest
from fcp_core.protocol.joining import join, move
from fcp_plugins.sqlite_parts import put_parts

SIZE = 32 << 20

pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_fallocate") or not Path("/proc/self/status").exists(),
    reason="needs Linux",
)


def resident(kind):
    """Return how many bytes of a kind are in the memory of this process."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


def written(folder, size=SIZE):
    file = BlockFile(size, folder)
    pattern = np.arange(size // 4, dtype=np.uint32)
    for start in range(0, size // 4, 1 << 18):
        file.write(pattern[start : start + (1 << 18)].view(np.uint8).data)
    return file.block(), pattern.tobytes()


def descriptors(folder):
    """Return how many files of a folder are open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{folder}/")
    return found


def wait_for_none(folder):
    """Wait until no file of a folder is open: another thread drops them."""
    end = time.monotonic() + 60
    while descriptors(folder) and time.monotonic() < end:
        time.sleep(0.01)
    assert descriptors(folder) == 0


def test_what_rests_is_in_the_file_only_and_can_be_read_again(tmp_path):
    view, data = written(tmp_path)
    before = resident("RssFile")
    assert view == data
    assert resident("RssFile") - before > SIZE // 2
    rest(view)
    assert resident("RssFile") - before < SIZE // 8
    assert view == data
    numbers = np.frombuffer(view, np.uint32)[10:]
    numbers += 1
    rest(numbers.data)
    assert numbers[0] == 11, "what was changed in it is lost"


def test_what_is_joined_from_a_file_is_in_memory_once(tmp_path):
    view, data = written(tmp_path)
    assert view == data
    before = resident("RssFile")
    assert join([b"head", view, b"tail"]) == b"head" + data + b"tail"
    assert before - resident("RssFile") > SIZE // 2


def test_what_is_stored_from_a_file_is_not_in_memory_at_once(tmp_path):
    view, data = written(tmp_path)
    rest(view)
    before, most = resident("RssFile"), [0]

    class Connection:
        """Looks at the memory when it has copied a part."""

        def execute(self, *_):
            pass

        def executemany(self, _, rows):
            found = bytearray()
            for *_, part in rows:
                found += part
                most.append(resident("RssFile") - before)
            assert found == b"head" + data

    put_parts(Connection(), "blob", "a", [b"head", view])
    assert max(most) < SIZE // 8


def test_a_file_goes_with_the_last_view_of_it(tmp_path):
    view, _ = written(tmp_path, 1 << 20)
    assert not os.listdir(tmp_path), "anybody could read it"
    assert descriptors(tmp_path) == 2, "the block's own, and the one that is cut"
    part = np.frombuffer(view, np.uint32)[4:]
    del view
    assert part[0] == 4
    del part
    gc.collect()
    wait_for_none(tmp_path)


def test_a_file_that_becomes_no_block_goes_in_another_thread(tmp_path, monkeypatch):
    """A quarter of a gigabyte would stop the event loop for 20 ms."""
    threads, truncate = [], os.ftruncate

    def note(*arguments):
        threads.append(threading.current_thread())
        truncate(*arguments)

    monkeypatch.setattr(os, "ftruncate", note)
    dropped = BlockFile(1 << 20, tmp_path)
    assert descriptors(tmp_path) == 1
    dropped.close()
    dropped.close()
    wait_for_none(tmp_path)
    assert threads
    assert threading.current_thread() not in threads


def test_without_a_descriptor_left_a_file_goes_all_the_same(tmp_path, monkeypatch):
    def none_left(_):
        raise OSError(24, "Too many open files")

    file = BlockFile(1 << 20, tmp_path)
    other = BlockFile(1 << 20, tmp_path)
    other.write(memoryview(b"data"))
    monkeypatch.setattr(os, "dup", none_left)
    file.close()
    with pytest.raises(OSError, match="Too many"):
        other.block()
    assert descriptors(tmp_path) == 0


def test_there_is_no_file_without_room(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        BlockFile(1 << 20, tmp_path)
    assert descriptors(tmp_path) == 0


def test_what_is_moved_out_of_memory_is_there_once():
    block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    data = np.arange(SIZE // 4, dtype=np.uint32).tobytes()
    block[:] = data
    view = memoryview(np.frombuffer(block, np.uint8))[3:]
    assert block_of(view) is block
    before = resident("RssAnon")
    moved = move(view)
    assert resident("RssAnon") - before < SIZE // 4
    assert moved == data[3:]
    assert move(memoryview(b"small")) == b"small"
