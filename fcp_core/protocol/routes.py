"""Which HTTP verb and path reach which call: a table made from the services' own annotations.

Paths are matched as they came over the wire and unescaped afterwards, so a population ``a/b``,
which devices send as ``a%2Fb``, stays one variable.

The published client escapes a byte below 0x10 with one digit (``%A`` for a line feed). That is read
where nothing else can be meant, that is where no second hexadecimal digit follows; ``%Ab`` stays
the byte 0xAB, for a client without that fault would mean just this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from fcp_core.protocol.pool import POOL, message_class
from fcp_core.protocol.protos import (
    aggregations_pb2,
    confidential_aggregations_pb2,
    eligibility_eval_tasks_pb2,
    google_api_annotations_pb2,
    google_longrunning_operations_pb2,
    secure_aggregations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import FileDescriptorProto

_MODULES = (
    eligibility_eval_tasks_pb2,
    task_assignments_pb2,
    aggregations_pb2,
    secure_aggregations_pb2,
    confidential_aggregations_pb2,
    google_longrunning_operations_pb2,
)

# Devices poll and cancel operations; nobody lists, deletes or waits for them over HTTP.
_LEFT_OUT = {"ListOperations", "DeleteOperation", "WaitOperation"}

_VARIABLE = re.compile(r"\{(\w+)(?:=([^}]*))?\}")
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{1,2}))?")


@dataclass(frozen=True)
class Route:
    """One call of the protocol and how HTTP reaches it.

    :param service: the service's full name.
    :param method: the method's name in it.
    :param verb: ``GET`` or ``POST``.
    :param template: the path, with variables in braces.
    :param request_class: the message in the body; variables of the path are not repeated there.
    :param response_class: the message that answers; ``google.longrunning.Operation`` if the call
        is long-running.
    :param operation_response_class: what a long-running call's operation answers in the end.
    :param operation_metadata_class: what a long-running call's operation carries as metadata.
    """

    service: str
    method: str
    verb: str
    template: str
    request_class: Any = field(repr=False)
    response_class: Any = field(repr=False)
    operation_response_class: Any = field(default=None, repr=False)
    operation_metadata_class: Any = field(default=None, repr=False)

    @cached_property
    def name(self) -> str:
        """The short name, such as ``TaskAssignments.StartTaskAssignment``."""
        return f"{self.service.rpartition('.')[2]}.{self.method}"

    @cached_property
    def long_running(self) -> bool:
        """Whether the call starts a long-running operation."""
        return self.operation_response_class is not None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A pattern of raw paths with a group for each variable."""
        pattern = ""
        at = 0
        for found in _VARIABLE.finditer(self.template):
            # The part of a path after its last colon says what to do. Where the template has no
            # such part, a variable must not swallow one.
            free = "." if ":" in self.template[found.end() :] else "[^:]"
            if found.end() < len(self.template) and self.template[found.end()] == "/":
                free = "."
            segment = "[^/]*" if free == "." else "[^/:]*"
            inner = re.escape(found[2] or "*")
            inner = inner.replace(r"\*\*", f"{free}*").replace(r"\*", segment)
            pattern += re.escape(self.template[at : found.start()]) + f"(?P<{found[1]}>{inner})"
            at = found.end()
        return re.compile(pattern + re.escape(self.template[at:]), re.DOTALL)

    def match(self, raw_path: str) -> dict[str, str] | None:
        """Return the unescaped variables if *raw_path* is one of this route, whatever the verb.

        :param raw_path: the path as it was sent, without the query.
        :raises StatusError: INVALID_ARGUMENT if an escape in it is malformed or is not UTF-8.
        """
        found = self.pattern.fullmatch(raw_path)
        return None if found is None else _variables(found)

    def url(self, variables: Mapping[str, str]) -> str:
        """Return the path that a client sends, without the query.

        :param variables: each variable of the template.
        :raises KeyError: if one is missing.
        :raises StatusError: INVALID_ARGUMENT for a value that is not ASCII, or that does not fit
            the template, such as an operation name that does not begin with ``operations/``.
        """

        def fill(found: re.Match[str]) -> str:
            name, shape = found[1], found[2] or "*"
            value = variables[name]
            if not value.isascii():
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"{name} {value!r} has characters that are not ASCII"
                )
            prefix = shape.rstrip("*")
            if not value.startswith(prefix):
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"{name} {value!r} does not begin with {prefix!r}"
                )
            return quote(value, safe="/" if shape.endswith("**") else "")

        return _VARIABLE.sub(fill, self.template)


def _variables(found: re.Match[str]) -> dict[str, str]:
    return {name: _unescape(name, value) for name, value in found.groupdict().items()}


def _unescape(name: str, value: str) -> str:
    """Undo the escaping of one variable."""
    if "%" not in value:
        return value

    def byte(found: re.Match[bytes]) -> bytes:
        if found[1] is None:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the {name} in the path has a '%' without two hexadecimal digits: {value!r}",
            )
        return bytes([int(found[1], 16)])

    try:
        return _ESCAPE.sub(byte, value.encode()).decode()
    except UnicodeDecodeError:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the {name} in the path is not UTF-8: {value!r}"
        ) from None


def _read(serialized: bytes) -> Iterator[Route]:
    """Yield the routes that the services of a file declare; its messages are in the pool."""
    # The options are extensions, which only the file's own message shows, not its descriptor.
    file = FileDescriptorProto.FromString(serialized)

    def resolve(name: str) -> Any:
        return message_class(name if "." in name else f"{file.package}.{name}")

    for service in file.service:
        for method in service.method:
            options: Any = method.options.Extensions
            rule = options[google_api_annotations_pb2.http]
            verb = rule.WhichOneof("pattern")
            if verb is None or method.name in _LEFT_OUT:
                continue
            info = options[google_longrunning_operations_pb2.operation_info]
            yield Route(
                service=f"{file.package}.{service.name}".lstrip("."),
                method=method.name,
                verb=verb.upper(),
                template=getattr(rule, verb),
                request_class=resolve(method.input_type.lstrip(".")),
                response_class=resolve(method.output_type.lstrip(".")),
                operation_response_class=resolve(info.response_type)
                if info.response_type
                else None,
                operation_metadata_class=resolve(info.metadata_type)
                if info.metadata_type
                else None,
            )


#: The protocol's own routes; :func:`add` does not change them.
ROUTES: tuple[Route, ...] = tuple(
    route for module in _MODULES for route in _read(module.DESCRIPTOR.serialized_pb)
)

#: Routes by what a path must end with, after its last colon; None: it does not matter.
_BY_ENDING: dict[tuple[str, str | None], list[Route]] = {}
_BY_METHOD: dict[tuple[str, str], Route] = {}
_BY_NAME: dict[str, Route] = {}


def key_of(route: Route) -> tuple[str, str | None]:
    """Return the verb of a route, and what its paths end with after the last colon, or None."""
    template = route.template
    return route.verb, template.rpartition(":")[2] if ":" in template else None


def alike(key: tuple[str, str | None]) -> tuple[Route, ...]:
    """Return the routes that have a key in common, in the order in which they are tried."""
    return tuple(_BY_ENDING.get(key, ()))


def _register(new: Route) -> None:
    _BY_ENDING.setdefault(key_of(new), []).append(new)
    _BY_METHOD[new.service, new.method] = new
    _BY_NAME[new.name] = new


for _route in ROUTES:
    _register(_route)


def add(file: Any) -> tuple[Route, ...]:
    """Add the routes of a protocol plugin's own services; adding a file again changes nothing.

    :param file: a file's descriptor, its ``FileDescriptorProto``, or that serialized. What it
        imports must be there already: this package's files, or files that were added before.
    :returns: the routes that its services declare, those that were known among them.
    :raises ValueError: if the file does not fit what is there, or one of its methods has the short
        name or the path of another.
    """
    serialized = _serialized(file)
    name = FileDescriptorProto.FromString(serialized).name
    try:
        POOL.FindFileByName(name)
    except KeyError:
        try:
            POOL.AddSerializedFile(serialized)
            POOL.FindFileByName(name)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the file {name} cannot be added: {error}") from error
    try:
        found = tuple(_read(serialized))
    except KeyError as error:
        raise ValueError(f"a service of {name} uses a message that is not there: {error}") from None
    taken = {(known.verb, known.template): known.name for known in _BY_METHOD.values()}
    for new in found:
        known = _BY_NAME.get(new.name)
        owner = taken.get((new.verb, new.template), new.name)
        if (known is not None and known != new) or owner != new.name:
            raise ValueError(
                f"{new.service}.{new.method} of {name} has the short name or the path of "
                f"{known.service if known is not None else owner}, which has another route"
            )
    for new in found:
        if (new.service, new.method) not in _BY_METHOD:
            _register(new)
    return found


def _serialized(file: Any) -> bytes:
    """Return a file as bytes, its imports under the names that they have here."""
    if isinstance(file, bytes):
        data = file
    else:
        data = getattr(file, "serialized_pb", None) or file.SerializeToString()
    message = FileDescriptorProto.FromString(data)
    if not any(name in _OWN_NAMES for name in message.dependency):
        return data
    message.dependency[:] = [_OWN_NAMES.get(name, name) for name in message.dependency]
    return message.SerializeToString()


#: Where the usual imports of an annotated service are found here.
_OWN_NAMES: dict[str, str] = {
    "google/api/annotations.proto": google_api_annotations_pb2.DESCRIPTOR.name,
    "google/longrunning/operations.proto": google_longrunning_operations_pb2.DESCRIPTOR.name,
}


def named(name: str) -> Route:
    """Return the route of a short name, such as ``TaskAssignments.StartTaskAssignment``.

    :raises KeyError: if there is none.
    """
    return _BY_NAME[name]


def route(service: str, method: str) -> Route:
    """Return the route of a call.

    :param service: the full name, such as ``google.internal.federatedcompute.v1.Aggregations``.
    :raises KeyError: if there is none.
    """
    return _BY_METHOD[service, method]


def method_name(method: str) -> str:
    """Return ``start_task_assignment`` for ``StartTaskAssignment``."""
    return _CAPITAL.sub("_", method).lower()


def of_service(service: str) -> tuple[Route, ...]:
    """Return the routes of a service, by its full name; none if it is unknown."""
    return tuple(route for (owner, _), route in _BY_METHOD.items() if owner == service)


def services() -> frozenset[str]:
    """Return the full names of all services that have routes."""
    return frozenset(service for service, _ in _BY_METHOD)


def match(verb: str, raw_path: str) -> tuple[Route, dict[str, str]] | None:
    """Return the route of a request and the unescaped variables of its path, or None.

    :param raw_path: the path as it was sent, without the query.
    :raises StatusError: INVALID_ARGUMENT if an escape in it is malformed or is not UTF-8.
    """
    for ending in (raw_path.rpartition(":")[2], None):
        for candidate in _BY_ENDING.get((verb, ending), ()):
            found = candidate.pattern.fullmatch(raw_path)
            if found is not None:
                return candidate, _variables(found) if "%" in raw_path else found.groupdict()
    return None


def verbs(raw_path: str) -> tuple[str, ...]:
    """Return the verbs that have a route for *raw_path*: what a 405 answers as Allow.

    :raises StatusError: as :func:`match` does.
    """
    return tuple(sorted({r.verb for r in _BY_METHOD.values() if r.match(raw_path) is not None}))


def url(name: str, variables: Mapping[str, str]) -> str:
    """Return the path that a client sends for a call, without the query.

    :param name: the route's short name, such as ``TaskAssignments.StartTaskAssignment``.
    :param variables: each variable of the route's template.
    :raises KeyError: if there is no such route, or a variable is missing.
    :raises StatusError: as :meth:`Route.url` does.
    """
    return _BY_NAME[name].url(variables)
