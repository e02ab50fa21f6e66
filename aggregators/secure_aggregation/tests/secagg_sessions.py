"""Server and clients together, round by round."""

import random

import numpy as np

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg import unmasking
from fcp_secagg.client import SecAggClient
from fcp_secagg.graphs import FullGraph
from fcp_secagg.packing import VectorSpec
from fcp_secagg.server import SecAggServer
from fcp_secagg.states import Outcome, ServerState

SPECS = [VectorSpec("w", 5, 2**20), VectorSpec("z", 3, 1000003)]


class Session:
    """A server and its clients, one message at a time."""

    def __init__(self, graph, minimum, seed=0, specs=SPECS):
        self.rng = random.Random(seed)
        self.graph, self.specs = graph, specs
        self.server = SecAggServer(graph, specs, minimum)
        self.inputs = [{s.name: self.vector(s) for s in specs} for _ in range(graph.size)]
        self.clients = [
            SecAggClient(graph.degree, graph.threshold, specs, self.rng.randbytes)
            for _ in range(graph.size)
        ]
        #: What each client has to send.
        self.outbox = {}
        self.aborts = {}
        for index, client in enumerate(self.clients):
            client.set_input(self.inputs[index])
            self.outbox[index] = client.start()

    def vector(self, spec):
        return np.array([self.rng.randrange(spec.modulus) for _ in range(spec.length)], np.uint64)

    def send(self, index):
        message = self.outbox.pop(index, None)
        if message is not None:
            for send in self.server.receive(index, message):
                self.aborts[send.client] = send.message

    def proceed(self):
        for send in self.server.proceed():
            if isinstance(send.message, pb.AbortMessage):
                self.aborts[send.client] = send.message
            else:
                answer = self.clients[send.client].receive(send.message)
                if answer is not None:
                    self.outbox[send.client] = answer

    def round(self, gone=()):
        for index in gone:
            self.outbox.pop(index, None)
            self.server.leave(index)
        for index in self.rng.sample(range(self.graph.size), self.graph.size):
            self.send(index)
        self.proceed()

    def check(self, wanted=None):
        assert self.server.state is ServerState.PRNG_RUNNING
        included = self.server.included
        assert wanted is None or included == wanted
        sums = unmask(self.server)
        for spec in self.specs:
            total = sum(self.inputs[i][spec.name].astype(object) for i in included)
            assert sums[spec.name].tolist() == (total % spec.modulus).tolist()


def unmask(server):
    """Do the heavy work here and now, and finish; return the sums by the vectors' names."""
    given = unmasking.Inputs(server.specs, b"", server.take_inputs())
    total = unmasking.add_inputs(unmasking.encode(given))
    try:
        keys = unmasking.read_keys(unmasking.find_keys(unmasking.encode(server.keys())))
    except ValueError:
        server.abort("a key could not be put together", Outcome.UNHANDLED_ERROR)
        raise
    expansion = unmasking.Expansion(server.specs, server.session_id, keys)
    part = unmasking.expand(unmasking.encode(expansion))
    server.finish()
    return unmasking.add_all([total, part], server.specs)


def full(size, threshold):
    return FullGraph(size, threshold)


def lied_to(request, change, step):
    """Return a client, and how it answers a request of that step after a lie."""
    session = Session(full(5, 3), 3, seed=4)
    for index in range(5):
        session.send(index)
    client = session.clients[1]
    for number in range(step + 1):
        sends = session.server.proceed()
        for send in sends:
            if number == step and send.client == 1:
                change(send.message)
                answer = client.receive(send.message)
                assert isinstance(send.message, request)
                return client, answer
            session.outbox[send.client] = session.clients[send.client].receive(send.message)
        for index in range(5):
            session.send(index)
    raise AssertionError("the step never came")


def dead(*numbers):
    return lambda message: message.dead_3_client_ids.extend(numbers)
