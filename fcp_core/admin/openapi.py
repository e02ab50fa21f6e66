"""The OpenAPI description of the admin API, made from the declarations of its calls."""

from __future__ import annotations

import copy
import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from fcp_core.admin.api import ENDPOINTS, JSON, MSGPACK, PREFIX, Endpoint
from fcp_core.admin.messages import Error
from fcp_core.protocol.status import http_status

#: What every call may answer, by HTTP status.
_COMMON = {
    400: "the request is malformed",
    401: "there is no valid token",
    406: "no content type is acceptable",
    413: "the body is too large",
    431: "the header is too large",
    503: "the server is busy, or stopping; ask again",
}
_REFERENCE = "#/components/schemas/{name}"


def version() -> str:
    """Return the version of this software."""
    return importlib.metadata.version("fcp-server")


def describe() -> dict[str, Any]:
    """Return the description, an OpenAPI 3.1 document, as JSON values."""
    types = list(dict.fromkeys([*_types(), Error]))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    for schema in components.values():
        _describe_fields(schema, schema.get("description", ""))
    for kind in types:
        for base in getattr(kind, "__mro__", ()):
            if kind.__name__ in components:
                _describe_fields(components[kind.__name__], base.__doc__ or "")
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        operation = _operation(endpoint, by_type, components)
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.verb.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fcp admin API",
            "version": version(),
            "description": "Tasks of a Federated Compute server, for operators and programs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe_fields(schema: dict[str, Any], text: str) -> None:
    """Give a struct's fields the sentences that a docstring has on them."""
    for name, sentence in re.findall(r":param (\w+): (.*?)\.?(?=\n\s*:\w|\Z)", text, re.DOTALL):
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", " ".join(sentence.split()))
    if "description" in schema:
        schema["description"] = re.split(r"\n\s*:\w", schema["description"])[0].strip()


def _types() -> Iterator[Any]:
    for endpoint in ENDPOINTS:
        yield from (kind for kind in (endpoint.query, endpoint.body) if kind is not None)
        yield from (kind for kind in endpoint.answers.values() if kind not in (bytes, str))


def _operation(
    endpoint: Endpoint, by_type: dict[Any, Any], components: dict[str, Any]
) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in endpoint.variables
    ]
    if endpoint.query is not None:
        fields = components[endpoint.query.__name__]["properties"]
        parameters += [
            {"name": name, "in": "query", "schema": copy.deepcopy(schema)}
            for name, schema in fields.items()
        ]
    operation: dict[str, Any] = {
        "operationId": endpoint.method,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "as asked",
                "content": {
                    kind: {"schema": by_type.get(answer, {"type": "string"})}
                    if answer is not bytes
                    else {}
                    for kind, answer in endpoint.answers.items()
                },
            }
        },
    }
    errors = dict(_COMMON)
    for code in endpoint.codes:
        errors[http_status(code)] = code.name.lower().replace("_", " ")
    error = {"application/json": {"schema": by_type[Error]}}
    for status, description in sorted(errors.items()):
        operation["responses"][str(status)] = {"description": description, "content": error}
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": endpoint.body_required,
            "content": {kind: {"schema": by_type[endpoint.body]} for kind in (JSON, MSGPACK)},
        }
    return operation
