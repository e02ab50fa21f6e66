"""Where the signing keys of a deployment are: a file, the environment, or this process only."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fcp_core.errors import UsageError
from fcp_core.rounds.keys import DeploymentKeys, format_keys, parse_keys

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config
    from fcp_core.storage.contract import Storage

logger = logging.getLogger(__name__)

#: What a key file may not allow: anything to others, and writing to its group.
_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP

_log = logging.getLogger("fcp.server")


def load_keys(config: Config, storage: Storage) -> DeploymentKeys:
    """Return the keys that the configuration names, making a file beside the storage if need be.

    A storage that does not outlive the process, or that has no file on this host, gets keys that
    end with the process.

    :raises UsageError: if keys are configured twice, or their file or text cannot be used.
    """
    text = config.get("token_keys")
    if text is not None:
        _check_origin(config)
        # A variable with several lines is a nuisance to many tools; commas do as well.
        return parse_keys(text.replace(",", "\n"), config.origin("", "token_keys"))
    path = keys_path(config, storage)
    if path is None:
        if storage.durable:
            _log.warning(
                "the keys that sign tokens end with this server: after a restart the devices in a "
                "session are refused. Make a file with 'fcp keys --file FILE create', and name it "
                "with token_keys_file."
            )
        return DeploymentKeys.create(secrets.token_bytes)
    if config.get("token_keys_file") is None and not path.exists():
        if storage.path is not None and storage.path.exists():
            logger.warning(
                "%s has no key file %s beside it: new keys are made, and what devices were given "
                "before is refused. If there is an old file, stop, put it there and start again",
                *(storage.path, path),
            )
        return create_file(path)
    return read_file(path)


def keys_path(config: Config, storage: Storage) -> Path | None:
    """Return where the key file is or would be; None if the keys are in no file."""
    configured: Path | None = config.get("token_keys_file")
    if configured is not None:
        return configured
    if not storage.durable or storage.path is None:
        return None
    beside = storage.path.with_name(f"{storage.path.name}.keys")
    real = storage.path.resolve()
    # A link to the storage leads to its keys; releases up to 0.2 made some beside the link.
    return beside if beside.exists() else real.with_name(f"{real.name}.keys")


def read_file(path: Path) -> DeploymentKeys:
    """Read a key file.

    :raises UsageError: if it cannot be read, others than its owner and group can, or it is wrong.
    """
    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _FORBIDDEN:
                raise UsageError(
                    f"the key file {path} has mode {mode:04o}: others could read or change the "
                    f"keys. Run 'chmod 600 {path}', then 'fcp keys rotate' twice if somebody may "
                    "have read them."
                )
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        missing = isinstance(error, FileNotFoundError)
        hint = f" 'fcp keys --file {path} create' makes one." if missing else ""
        raise UsageError(f"the key file {path} cannot be read: {reason}.{hint}") from None
    return parse_keys(text, f"the key file {path}")


def create_file(path: Path) -> DeploymentKeys:
    """Make a key file, or read the one that another process made meanwhile.

    :raises UsageError: if it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        keys = _write(draft, lambda: DeploymentKeys.create(secrets.token_bytes))
        try:
            # Unlike a rename, a link never replaces: of several processes one wins, with a whole
            # file.
            os.link(draft, path)
        except FileExistsError:
            return read_file(path)
        finally:
            draft.unlink()
    except OSError as error:
        raise UsageError(
            f"the key file {path} cannot be made: {error.strerror}. Its folder must be writable; "
            "or name a file with token_keys_file."
        ) from None
    return keys


def rotate_file(path: Path) -> DeploymentKeys:
    """Give a key file a new current key; of the old ones it keeps the last current one.

    :raises UsageError: if it cannot be read or written, or is being rotated elsewhere.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        # Of two rotations at a time the second one fails before it has read anything.
        keys = _write(draft, lambda: read_file(path).rotated(secrets.token_bytes))
        draft.replace(path)
    except FileExistsError:
        raise UsageError(
            f"the key file {path} is being rotated, or a rotation was interrupted: then delete "
            f"{draft}."
        ) from None
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be written: {error.strerror}.") from None
    return keys


def _write(path: Path, make: Callable[[], DeploymentKeys]) -> DeploymentKeys:
    """Make keys and write them to a new file that only its owner can read, whatever the umask.

    :raises FileExistsError: if the file exists; nothing is made then.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)
            keys = make()
            file.write(format_keys(keys))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise
    return keys


def _check_origin(config: Config) -> None:
    """Refuse keys in a configuration file, which people copy and show, and keys in two places."""
    origin = config.origin("", "token_keys")
    if not origin.startswith("environment "):
        raise UsageError(
            f"token_keys (from {origin}) may only come from the environment variable "
            "FCP_TOKEN_KEYS; or name a file with token_keys_file."
        )
    if config.get("token_keys_file") is not None:
        raise UsageError(
            f"there are two sources of signing keys: {origin} and token_keys_file (from "
            f"{config.origin('', 'token_keys_file')}); keep one."
        )
