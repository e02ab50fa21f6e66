"""Services that are declared in Python."""

import pytest

from fcp_core.protocol import routes
from fcp_core.protocol.declare import Rpc, ServiceFile
from fcp_core.protocol.wkt import Duration


@pytest.fixture(scope="module")
def declared():
    """A file with all that there can be."""
    return ServiceFile(
        "declared/parrots.proto",
        "declared.parrots.v1",
        {
            "Word": {"text": "string", "loud": "bool"},
            "SayRequest": {"name": "string", "words": "repeated Word", "counts": "repeated int32"},
            "SayResponse": {"wait": "google.protobuf.Duration", "echo": "bytes"},
            "Waiting": {"polling_interval": "google.protobuf.Duration"},
        },
        "Parrots",
        [
            Rpc("Say", "SayRequest", "SayResponse", "/v1/parrots/{name}:say"),
            Rpc("Learn", "SayRequest", "SayResponse", "/v1/parrots/{name}:learn", "Waiting"),
        ],
    )


def test_messages_keep_what_is_put_in(declared):
    request = declared["SayRequest"](name="polly", counts=[1, 2])
    request.words.add(text="hello", loud=True)
    again = declared["SayRequest"].FromString(request.SerializeToString())
    assert again == request
    assert [field.number for field in again.DESCRIPTOR.fields] == [1, 2, 3]
    response = declared["SayResponse"](wait=Duration(seconds=2), echo=b"hello")
    assert declared["SayResponse"].FromString(response.SerializeToString()).wait.seconds == 2
    with pytest.raises(KeyError):
        declared["Shout"]


def test_its_routes_are_those_of_any_service(declared):
    say, learn = routes.add(declared.descriptor)
    assert routes.of_service(declared.service) == (say, learn)
    assert declared.service == "declared.parrots.v1.Parrots"
    assert say.request_class is declared["SayRequest"]
    assert not say.long_running
    assert learn.long_running
    assert learn.operation_response_class is declared["SayResponse"]
    assert learn.operation_metadata_class is declared["Waiting"]
    found = routes.match("POST", "/v1/parrots/polly%2Fjr:say")
    assert found == (say, {"name": "polly/jr"})
    assert routes.of_service("declared.parrots.v2.Parrots") == ()


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(KeyError, match="nowhere"):
        ServiceFile("declared/lost.proto", "declared.lost", {"A": {"b": "nowhere.B"}}, "S", [])
    with pytest.raises((TypeError, KeyError)):
        ServiceFile(
            "declared/lost2.proto", "declared.lost2", {}, "S", [Rpc("A", "A", "B", "/v1/a")]
        )["A"]
