"""API keys: who has one, and what takes part without."""

from __future__ import annotations

import hashlib

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_plugins.api_keys import LOOK, APIKeys, read_keys
from tests.server.servers import BODY, Time, line, result, submit


@pytest.fixture
def plugin(tmp_path):
    """The plugin with two keys, its file and its clock."""
    path, time = tmp_path / "keys", Time()
    path.write_text("# ours\n\n" + line("first", "one app") + line("second", "two"))
    plugin = APIKeys(time)
    plugins = Plugins.load(
        environ={},
        extra=[plugin],
        overrides={"api_keys.file": str(path)},
        working_folder=tmp_path,
    )
    plugin.fcp_startup(plugins.config)
    return plugin, path, time


def ask(plugin, key, certificate=None):
    headers = {} if key is None else {"x-goog-api-key": key}
    try:
        return plugin.fcp_authenticate(headers, certificate)
    except StatusError as error:
        return error.code


def test_a_key_is_known_by_its_hash(plugin):
    plugin, _, _ = plugin
    assert ask(plugin, "first") == "key:one app"
    assert ask(plugin, "second") == "key:two"
    assert ask(plugin, "third") is Code.PERMISSION_DENIED
    assert ask(plugin, hashlib.sha256(b"first").hexdigest()) is Code.PERMISSION_DENIED
    assert ask(plugin, "") is ask(plugin, None) is Code.UNAUTHENTICATED
    assert ask(plugin, None, {"subject": ()}) is Code.UNAUTHENTICATED
    assert ask(plugin, "ü\ud800") is Code.PERMISSION_DENIED
    assert "first" not in repr(vars(plugin))


def test_the_file_is_read_again_when_it_changes(plugin, caplog):
    plugin, path, time = plugin
    path.write_text(line("third", "three"))
    assert ask(plugin, "first") == "key:one app"  # it is not looked at with every request
    time.now += LOOK
    assert ask(plugin, "first") is Code.PERMISSION_DENIED
    assert ask(plugin, "third") == "key:three"
    for broken in ("not hashed\n", None):
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        time.now += LOOK
        assert ask(plugin, "third") == "key:three"
        assert "the keys stay as they were" in caplog.text
        assert "not hashed" not in caplog.text
        caplog.clear()
    path.write_text(line("first", "one"))
    time.now += LOOK
    with caplog.at_level("INFO", "fcp.api_keys"):
        assert ask(plugin, "first") == "key:one"
        assert "1 keys were read again" in caplog.text
        caplog.clear()
        time.now += 10 * LOOK
        assert ask(plugin, "first") == "key:one"
        assert caplog.text == ""  # it was looked at, and is the same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        ("secret\n", "line 1"),
        ("# x\n" + "0" * 64 + "\n", "line 2"),
        ("0" * 63 + " name\n", "line 1"),
    ],
)
def test_a_file_that_does_not_do(tmp_path, text, said):
    path = tmp_path / "keys"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


def test_without_a_file_it_does_not_start(make_server):
    with pytest.raises(UsageError, match=r"\[fcp:api_keys\] file is not set"):
        make_server({"plugins": "fcp_plugins.api_keys:APIKeys"})


def test_only_those_with_a_key_take_part(make_server, make_device, sum_task, tmp_path):
    (tmp_path / "keys").write_text(line("key", "the app") + line("other key", "other"))
    thread = make_server(
        {"plugins": "fcp_plugins.api_keys:APIKeys", "api_keys.file": str(tmp_path / "keys")}
    )
    task_id = submit(thread, sum_task(goal=1))
    device = make_device(thread.server.url, "people")  # sends "key"
    task, _, _ = device.assignment()
    send = device.send

    def as_other(key):
        def send_as(method, base, path, body=None, headers=None):
            return send(method, base, path, body, {**(headers or {}), "x-goog-api-key": key})

        return send_as

    for key, status in (("wrong", 403), ("", 401)):
        device.send = as_other(key)
        for step in (
            device.check_in,
            lambda: device.start_upload(task),
            lambda: device.report(task),
        ):
            with pytest.raises(make_device.Refused) as caught:
                step()
            assert caught.value.status == status
    # A session belongs to the key that opened it.
    device.send = as_other("other key")
    with pytest.raises(make_device.Refused) as caught:
        device.report(task)
    assert caught.value.status == 403
    device.send = send
    upload = device.start_upload(task)
    device.send = as_other("wrong")
    with pytest.raises(make_device.Refused) as caught:
        device.upload(upload, BODY)
    assert caught.value.status == 403
    device.send = send
    device.upload(upload, BODY)
    device.submit(task, upload)
    assert result(thread, task_id)
