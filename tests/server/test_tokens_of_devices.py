"""Tokens and upload names belong to their task, and are nowhere at rest."""

from __future__ import annotations

import hashlib

import pytest

from fcp_core.protocol.status import Code
from tests.server.servers import BODY, result, submit


def test_tokens_belong_to_their_task_and_repeats_change_nothing(make_server, make_device, sum_task):
    thread = make_server()
    ids = [submit(thread, sum_task(goal=1, name=name)) for name in ("a", "b")]
    devices = [make_device(thread.server.url, "people") for _ in ids]
    tasks = [device.assignment()[0] for device in devices]
    first, second = tasks
    assert first.aggregation_id != second.aggregation_id

    def refused(step, *arguments):
        with pytest.raises(make_device.Refused) as caught:
            step(*arguments)
        return caught.value.code

    # An authorization token of one task does not open another.
    assert refused(devices[0].start_upload, first, second.authorization_token) is (
        Code.UNAUTHENTICATED
    )
    uploads = [device.start_upload(task) for device, task in zip(devices, tasks, strict=True)]
    assert devices[0].start_upload(first) == uploads[0]
    names = [upload.resource.resource_name for upload in uploads]
    # A device that knows its own name cannot make another's out of it.
    guess = names[0][:80] + names[1][80:]
    uploads[0].resource.resource_name = guess
    assert refused(devices[0].upload, uploads[0], BODY) is Code.UNAUTHENTICATED
    uploads[0].resource.resource_name = names[0]
    for device, task, upload in zip(devices, tasks, uploads, strict=True):
        device.upload(upload, BODY)
        device.upload(upload, BODY)
        assert refused(device.submit, task, upload, names[1 - tasks.index(task)]) is (
            Code.INVALID_ARGUMENT
        )
    client = uploads[0].client_token
    uploads[0].client_token = uploads[1].client_token
    assert refused(devices[0].submit, first, uploads[0]) is Code.UNAUTHENTICATED
    uploads[0].client_token = client
    for device, task, upload in zip(devices, tasks, uploads, strict=True):
        device.submit(task, upload)
    for task_id in ids:
        assert result(thread, task_id)


def test_upload_names_cannot_be_guessed(make_server, make_device, sum_task):
    thread = make_server()
    submit(thread, sum_task(goal=8))
    secrets = []
    for _ in range(8):
        device = make_device(thread.server.url, "people")
        task, _, _ = device.assignment()
        upload = device.start_upload(task)
        names = (task.authorization_token, upload.client_token, upload.resource.resource_name)
        secrets += names
        for name in names:
            for cut in (
                name[:-1],
                name[:-22],
                name + "A",
                name[:-1] + ("A" if name[-1] != "A" else "B"),
            ):
                upload.resource.resource_name = cut
                with pytest.raises(make_device.Refused) as caught:
                    device.upload(upload, BODY)
                assert caught.value.code is Code.UNAUTHENTICATED
    assert len(set(secrets)) == len(secrets)
    for column in range(1, 22):  # 128 bits of signature, no part of which stays the same
        assert len({secret[-column] for secret in secrets}) > 4


def test_tokens_are_nowhere_at_rest(make_server, make_device, sum_task, tmp_path):
    path = tmp_path / "fcp.db"
    thread = make_server({"storage": "sqlite", "storage.sqlite.path": str(path)})
    submit(thread, sum_task(goal=3))
    secrets = []
    for _ in range(2):
        device = make_device(thread.server.url, "people")
        task, _, _ = device.assignment()
        upload = device.start_upload(task)
        device.upload(upload, BODY)
        device.submit(task, upload)
        secrets += [
            task.authorization_token,
            upload.client_token,
            upload.resource.resource_name,
        ]
    waiting, _, _ = make_device(thread.server.url, "people").assignment()
    secrets.append(waiting.authorization_token)
    thread.stop()
    files = [file for file in tmp_path.iterdir() if file.name.startswith("fcp.db")]
    stored = b"".join(file.read_bytes() for file in files)
    # The task is there, so this looks in the right place.
    assert waiting.aggregation_id.encode() in stored
    hashed = [hashlib.sha256(secret.encode()).hexdigest() for secret in secrets]
    assert [secret for secret in hashed if secret.encode() in stored] == []
    assert [secret for secret in secrets if secret.encode() in stored] == []
