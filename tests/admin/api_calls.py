"""Calls of the admin API, each held to the description of the API."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import urllib3

from fcp_core.admin.api import find
from fcp_core.admin.messages import Submission
from fcp_core.admin.openapi import describe

WAIT = 30.0


def _load_schemas():
    spec = importlib.util.spec_from_file_location(
        "fcp_admin_schema", Path(__file__).with_name("schema.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


schema = _load_schemas()
DOCUMENT = json.loads(json.dumps(describe()))
SCHEMAS = schema.Schemas(DOCUMENT)


class Api:
    """Sends requests, and checks each answer against the description."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.pool = urllib3.PoolManager(retries=False, timeout=WAIT)
        self.token = token

    def __call__(self, verb, path, body=None, *, token=None, accept=None, **query):
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if accept is not None:
            headers["Accept"] = accept
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        suffix = f"?{urlencode(query)}" if query else ""
        reply = self.pool.request(
            verb, self.url + "/admin/v1" + path + suffix, body=body, headers=headers
        )
        self.check(verb, path, reply)
        return reply

    def check(self, verb, path, reply):
        kind = reply.headers["Content-Type"]
        found = find("/admin/v1" + path)
        if verb not in found:
            assert reply.status in (401, 404, 405, 431)
            assert kind == "application/json"
            error = DOCUMENT["components"]["schemas"]["Error"]
            assert SCHEMAS.problems(error, reply.json()) == []
            return
        endpoint, _ = found[verb]
        operation = DOCUMENT["paths"]["/admin/v1" + endpoint.path][verb.lower()]
        assert str(reply.status) in operation["responses"], (reply.status, reply.data)
        content = operation["responses"][str(reply.status)]["content"]
        assert kind in content, kind
        if kind == "application/json":
            assert SCHEMAS.problems(content[kind]["schema"], reply.json()) == []


def wire(spec, **changes):
    """Return a specification as the body of a submission."""
    return {**json.loads(msgspec.json.encode(Submission.of(spec))), **changes}
