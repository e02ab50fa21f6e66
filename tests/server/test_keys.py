"""Where signing keys are kept, and the command that rotates them."""

import logging
import multiprocessing
import os
import stat
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fcp_core.commands.main import cli
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.keys import DeploymentKeys, format_keys
from fcp_core.server import keys as module
from fcp_core.server.keys import create_file, load_keys, read_file, rotate_file

KEYS = DeploymentKeys.create(lambda size: (b"\xa5" if size == 32 else b"\x5a") * size)
TEXT = format_keys(KEYS)
SECRET = "a5" * 32


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Load plugins in an empty folder, with an environment and overrides."""
    monkeypatch.chdir(tmp_path)

    def load(environ=(), **overrides):
        for name, value in dict(environ).items():
            monkeypatch.setenv(name, value)
        return Plugins.load(overrides={"storage": "sqlite", **overrides})

    return load


def loaded(plugins):
    return load_keys(plugins.config, plugins.make_storage())


def secrets_of(keys):
    return [keys.keyring.get(key_id).secret for key_id in keys.keyring.ids]


def write(path, text=TEXT, mode=0o600):
    path.write_text(text)
    path.chmod(mode)


# Where they come from.


def test_the_first_start_makes_a_file_beside_the_storage(plugins, tmp_path):
    first = loaded(plugins())
    path = tmp_path / "fcp.sqlite.keys"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["fcp.sqlite.keys"]
    second = loaded(plugins())
    assert secrets_of(second) == secrets_of(first)
    assert second.deployment == first.deployment


def test_a_storage_without_its_keys_is_told(plugins, tmp_path, caplog):
    loaded(plugins())
    assert not caplog.records
    (tmp_path / "fcp.sqlite").touch()
    loaded(plugins())
    assert not caplog.records
    (tmp_path / "fcp.sqlite.keys").unlink()
    loaded(plugins())
    assert "what devices were given before is refused" in caplog.text


def test_a_link_to_a_storage_leads_to_its_keys(plugins, tmp_path):
    first = loaded(plugins())
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "fcp.sqlite")
    assert loaded(plugins(**{"storage.sqlite.path": str(link)})).deployment == first.deployment
    # An earlier release made a file of its own there, which is good still.
    create_file(link.with_name("link.sqlite.keys"))
    assert loaded(plugins(**{"storage.sqlite.path": str(link)})).deployment != first.deployment


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_the_umask_does_not_matter(tmp_path, umask):
    old = os.umask(umask)
    try:
        create_file(tmp_path / "keys")
        rotate_file(tmp_path / "keys")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_a_storage_that_does_not_last_has_keys_that_do_not(plugins, tmp_path):
    first, second = (loaded(plugins(storage="memory")) for _ in range(2))
    assert secrets_of(first) != secrets_of(second)
    assert first.deployment != second.deployment
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("durable", "warnings"), [(True, 1), (False, 0)])
def test_a_storage_that_lasts_without_a_file_for_keys_is_warned_of(
    plugins, tmp_path, caplog, durable, warnings
):
    shared = SimpleNamespace(durable=durable, path=None)
    first, second = (load_keys(plugins().config, shared) for _ in range(2))
    assert secrets_of(first) != secrets_of(second)
    assert caplog.text.count("fcp keys --file FILE create") == 2 * warnings
    assert list(tmp_path.iterdir()) == []


def test_a_configured_file_is_read_and_never_made(plugins, tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(UsageError, match="keys cannot be read: No such file"):
        loaded(plugins(token_keys_file=str(path)))
    write(path)
    assert secrets_of(loaded(plugins(token_keys_file=str(path)))) == secrets_of(KEYS)


@pytest.mark.parametrize("text", [TEXT, ",".join(TEXT.splitlines()[1:])])
def test_the_environment_may_say_it(plugins, tmp_path, text):
    keys = loaded(plugins({"FCP_TOKEN_KEYS": text}))
    assert (secrets_of(keys), keys.deployment) == (secrets_of(KEYS), KEYS.deployment)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_environment_is_named_without_the_keys(plugins):
    with pytest.raises(UsageError, match=r"environment FCP_TOKEN_KEYS, line 2") as caught:
        loaded(plugins({"FCP_TOKEN_KEYS": f"deployment {'5a' * 16},{SECRET}"}))
    assert "a5a5" not in str(caught.value)


def test_keys_in_two_places_or_in_a_configuration_file_are_refused(plugins, tmp_path):
    (tmp_path / "fcp.cfg").write_text("[fcp]\ntoken_keys = 01 ab\n")
    with pytest.raises(UsageError, match="only come from the environment"):
        loaded(plugins())
    (tmp_path / "fcp.cfg").write_text("[fcp]\ntoken_keys_file = keys\n")
    with pytest.raises(UsageError, match="two sources of signing keys"):
        loaded(plugins({"FCP_TOKEN_KEYS": TEXT}))


# Files that cannot be used.


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o666])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    write(tmp_path / "keys", mode=mode)
    with pytest.raises(UsageError, match=f"has mode {mode:04o}.*chmod 600"):
        read_file(tmp_path / "keys")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_a_file_that_its_owner_or_group_can_read_is_used(tmp_path, mode):
    write(tmp_path / "keys", mode=mode)
    assert secrets_of(read_file(tmp_path / "keys")) == secrets_of(KEYS)


def test_a_file_with_a_mistake_is_named_with_its_line(tmp_path):
    write(tmp_path / "keys", f"{TEXT}one two\n")
    with pytest.raises(UsageError, match=rf"the key file {tmp_path}/keys, line 4: the first word"):
        read_file(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not ASCII text"):
        read_file(tmp_path / "keys")


def test_what_cannot_be_opened_or_made_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory\."):
        read_file(tmp_path)
    with pytest.raises(UsageError, match="cannot be made: No such file"):
        create_file(tmp_path / "nowhere" / "keys")
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        rotate_file(tmp_path / "nowhere" / "keys")


# Several at a time.


def _race(path, start, results):
    start.wait()
    results.put(secrets_of(create_file(path)))


@pytest.mark.slow
def test_processes_that_race_end_with_one_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    path, start, results = tmp_path / "keys", context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(path, start, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert found == [secrets_of(read_file(path))] * 4
    assert list(tmp_path.iterdir()) == [path]


def test_who_comes_second_takes_the_file_of_the_first(tmp_path, monkeypatch):
    path, link = tmp_path / "keys", os.link

    def beaten(draft, target):
        write(path)
        link(draft, target)

    monkeypatch.setattr(module.os, "link", beaten)
    assert secrets_of(create_file(path)) == secrets_of(KEYS)
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_rotations_at_a_time_one_is_refused(tmp_path):
    write(tmp_path / "keys")
    write(tmp_path / "keys.new", "")
    with pytest.raises(UsageError, match=r"interrupted: then delete .*keys\.new"):
        rotate_file(tmp_path / "keys")
    assert (tmp_path / "keys").read_text() == TEXT


def test_a_rotation_that_fails_leaves_the_file_as_it_was(tmp_path):
    write(tmp_path / "keys", "wrong\n")
    with pytest.raises(UsageError, match="line 1"):
        rotate_file(tmp_path / "keys")
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"]


# The command.


def run(*arguments):
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


def test_the_command_rotates_the_file_beside_the_storage(plugins, tmp_path):
    before = loaded(plugins())
    path = tmp_path / "fcp.sqlite.keys"
    assert run("keys", "show-ids").output.splitlines() == [str(path), "01 current"]
    assert run("keys", "rotate").output.splitlines() == [str(path), "02 current", "01 previous"]
    after = loaded(plugins())
    assert secrets_of(after)[1:] == secrets_of(before)
    assert after.deployment == before.deployment
    result = run("keys", "rotate")
    assert result.output.splitlines()[1:] == ["03 current", "02 previous"]
    assert secrets_of(before)[0].hex() not in path.read_text()
    for secret in secrets_of(after):
        assert secret.hex() not in result.output


def test_the_command_takes_a_file(tmp_path, plugins):
    write(tmp_path / "mine")
    assert run("keys", "--file", "mine", "show-ids").output.splitlines() == ["mine", "01 current"]
    result = run("keys", "--file", "other", "rotate")
    assert result.exit_code == 2
    assert "other cannot be read: No such file" in result.output
    assert "fcp keys --file other create" in result.output


def test_the_command_makes_a_file_once(tmp_path, plugins):
    arguments = ("keys", "--file", "mine", "create")
    assert run(*arguments).output.splitlines() == ["mine", "01 current"]
    made = secrets_of(read_file(tmp_path / "mine"))
    assert run(*arguments).exit_code == 0
    assert secrets_of(loaded(plugins(token_keys_file=str(tmp_path / "mine")))) == made


@pytest.mark.parametrize(
    ("arguments", "environ", "problem"),
    [
        (("-s", "storage=memory"), {}, "no file on this host"),
        ((), {"FCP_TOKEN_KEYS": TEXT}, "come from environment FCP_TOKEN_KEYS"),
    ],
)
def test_keys_that_are_in_no_file_cannot_be_rotated(plugins, arguments, environ, problem):
    plugins(environ)
    result = run(*arguments, "keys", "rotate")
    assert result.exit_code == 2
    assert problem in result.output
    assert SECRET not in result.output


def test_neither_the_configuration_nor_the_log_shows_a_key(plugins, caplog):
    with caplog.at_level(logging.DEBUG):
        configured = plugins({"FCP_TOKEN_KEYS": TEXT})
        keys = loaded(configured)
    result = run("config", "show")
    assert "[fcp] token_keys " in result.output
    for text in (result.output, caplog.text, repr(configured.config.options()), repr(keys)):
        assert SECRET not in text
        assert "\\xa5" not in text
