"""Two servers on one SQLite file: the second one is refused."""

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fcp_core.errors import UsageError
from fcp_core.server import file_lock
from fcp_core.server.file_lock import FileLock
from fcp_core.storage.contract import StorageError


def test_a_second_server_is_refused_and_the_first_completes_its_task(kit, tmp_path):
    """Without the lock each completes the task, with other devices and another result."""

    def world():
        path = str(tmp_path / "fcp.sqlite")
        return kit.world(storage="sqlite", storage__sqlite__path=path)

    async def main():
        async with world() as first:
            task = await first.submit(goal=2)
            await first.device().run()
            with pytest.raises(UsageError) as refusal:
                async with world():
                    pass
            assert f"process {os.getpid()} on " in str(refusal.value)
            assert "since 20" in str(refusal.value)
            await first.device().run()
            assert await first.result(task) == [0b11, 2]
        # It is free again, and what was said to be final stays.
        async with world() as second:
            assert await second.result(task) == [0b11, 2]
            # Whoever takes the lock for a left-over lets another server in, and then only that.
            (tmp_path / "fcp.sqlite.lock").unlink()
            await second.submit()
            with pytest.raises(UsageError, match="is in use by another server"):
                async with world():
                    pass
            (tmp_path / "fcp.sqlite.lock").unlink()
            async with world() as third:
                await third.submit()
            with pytest.raises(StorageError, match="this one writes nothing until a restart"):
                await second.submit()

    asyncio.run(main())


@pytest.mark.slow
def test_the_lock_of_a_process_that_was_killed_is_free_at_once(tmp_path):
    path = tmp_path / "fcp.sqlite"
    code = """
        import sys, time
        from pathlib import Path
        from fcp_core.server.file_lock import FileLock
        lock = FileLock(Path(sys.argv[1]))
        lock.take()
        print("taken", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "taken\n"
            lock = FileLock(path)
            with pytest.raises(UsageError, match=rf"process {holder.pid} on .*, since "):
                lock.take()
        finally:
            holder.kill()
    lock.take()
    with pytest.raises(UsageError, match=f"process {os.getpid()} on"):
        FileLock(path).take()
    lock.free()
    lock.free()
    other = FileLock(path)
    other.take()
    other.free()


def test_a_link_to_the_file_is_the_same_storage(tmp_path):
    path = tmp_path / "fcp.sqlite"
    link = tmp_path / "elsewhere" / "current.sqlite"
    link.parent.mkdir()
    link.symlink_to(path)  # It may be made before the file is.
    lock = FileLock(path)
    lock.take()
    with pytest.raises(UsageError, match=r"current\.sqlite is in use by another server: process"):
        FileLock(link).take()
    assert FileLock(link).holder() == FileLock(path).holder() is not None
    lock.free()


def test_a_file_with_a_second_name_is_refused(tmp_path):
    path = tmp_path / "fcp.sqlite"
    path.touch()
    other = tmp_path / "other.sqlite"
    other.hardlink_to(path)
    with pytest.raises(UsageError, match="has a second name"):
        FileLock(path).take()
    other.unlink()
    lock = FileLock(path)
    lock.take()
    lock.free()


def test_a_file_that_is_mounted_by_itself_is_refused(tmp_path, monkeypatch):
    path, mounted = tmp_path / "fcp.sqlite", tmp_path / "elsewhere" / "fcp.sqlite"
    mounted.parent.mkdir()
    for file in (path, mounted):
        file.touch()
    assert file_lock._mount_of(mounted) == file_lock._mount_of(tmp_path)
    assert file_lock._mount_of(Path("/proc")) != file_lock._mount_of(Path("/"))
    bind = subprocess.run(["mount", "--bind", path, mounted], capture_output=True, check=False)
    if bind.returncode:  # not as this user
        monkeypatch.setattr(file_lock, "_mount_of", lambda path: path.suffix)
    try:
        with pytest.raises(UsageError, match="is mounted by itself"):
            FileLock(mounted).take()
    finally:
        if not bind.returncode:
            subprocess.run(["umount", "-l", mounted], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.*cannot be opened: No such file"):
        FileLock(tmp_path / "nowhere" / "fcp.sqlite").take()
