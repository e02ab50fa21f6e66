"""Secure aggregation against the keystream that it cannot do without, on one core.

The keystream is AES-256 in counter mode, as OpenSSL makes it in pieces that fit the cache. All
times are processor times; ratios are of the best of several runs that take turns. Printed besides
is what the papers say of messages and neighbours beside ours. With --table it prints our times for
the numbers, vectors and drop-outs of the table of times of the protocol's paper of 2017 (its
section 7), to be read beside it, and nothing else.

    python benchmarks/bench_secagg.py [--quick | --table]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from goals import Goal

sys.path.insert(0, str(Path(__file__).parents[1] / "aggregators" / "secure_aggregation" / "src"))

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg import shamir, unmasking
from fcp_secagg.client import SecAggClient
from fcp_secagg.masks import LOOPS, MaskSum
from fcp_secagg.packing import VectorSpec
from fcp_secagg.parameters import Adversary, Parameters, Requirements, find_subgraph
from fcp_secagg.primitives import KeyPair, seal
from fcp_secagg.server import SecAggServer

#: Bytes of keystream at a time: as much as the masks take.
PIECE = 1680 * 32
#: Masks to add for one figure.
MASKS = 16
REPEATS = 9

MASK_SPEED, UNMASKING, GROWTH = 0.6, 2.0, 1.5

#: What a client sends and receives, divided by its vector in the clear, by the logarithms of the
#: users and of the elements, which have 16 bits: Bonawitz et al., Practical Secure Aggregation for
#: Privacy-Preserving Machine Learning, CCS 2017, abstract.
EXPANSION = {(10, 20): 1.73, (14, 24): 1.98}
#: With which part of 10,000 clients one has to talk if the server lies, 5 % of them are corrupt and
#: 5 % drop out, and sums are to be over 5,000: that is a stricter promise than the published
#: library's rule, which is ours, keeps. Bell et al., Secure Single-Server Aggregation with
#: (Poly)Logarithmic Overhead, CCS 2020, abstract. The same says that a billion clients have the
#: cost of a thousand in a full graph if the server only looks.
NEIGHBOURS = 0.03


def seconds(function: Callable[[], object]) -> float:
    """Return how much processor time a call takes."""
    began = time.process_time()
    function()
    return time.process_time() - began


def keystream(size: int) -> None:
    """Make so many bytes of keystream, and keep none."""
    encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(PIECE), bytearray(PIECE + 16)
    for _ in range(size // PIECE):
        encryptor.update_into(zeros, out)
    encryptor.update_into(zeros[: size % PIECE], out)


def best(*functions: Callable[[], None], repeats: int = REPEATS) -> list[float]:
    """Return the shortest time of each; they take turns."""
    times = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def mask_speed(bits: int, elements: int) -> float:
    """Return the speed of masks as a fraction of that of their keystream."""
    spec = VectorSpec("v", elements, 2**bits)
    total = MaskSum(spec, bytes(32))
    keys = [(os.urandom(32), 1) for _ in range(MASKS)]
    size = elements * -(-bits // 8)
    raw, masks = best(lambda: keystream(MASKS * size), lambda: total.add_all(keys))
    return raw / masks


def full(size: int, may_go: float = 0.2) -> Parameters:
    """Return the parameters of a full graph in which such a fraction may drop out."""
    least = size - int(size * may_go)
    return Parameters(size, size, least, least, full=True)


def unmask(
    size: int, elements: int, bits: int, gone: int, may_go: float = 0.2
) -> tuple[float, float]:
    """Return the seconds of unmasking with drop-outs, and of the keystream that it takes."""
    spec = VectorSpec("v", elements, 2**bits)
    parameters = full(size, may_go)
    pairs = [KeyPair.make(os.urandom) for _ in range(size - gone)]
    # All have the same key, and all that are gone: what is done with them does not depend on it.
    lost = KeyPair.make(os.urandom)

    def shares(secret: bytes) -> dict[int, bytes]:
        made = shamir.split(secret, parameters.threshold, size, os.urandom)
        return dict(enumerate(made[gone:], gone))

    own, of_lost = shares(os.urandom(32)), shares(bytes(lost.private))
    keys = unmasking.Keys(
        parameters.threshold,
        [unmasking.Shares(client, own) for client in range(gone, size)],
        [unmasking.Shares(client, of_lost) for client in range(gone)],
        [(dead, pair.public, 1) for dead in range(gone) for pair in pairs],
        dict.fromkeys(range(gone), lost.public),
    )
    taken = seconds(lambda: _unmask(unmasking.encode(keys), [spec]))
    total = elements * -(-bits // 8)
    raw = min(seconds(lambda: keystream(MASKS * total)) for _ in range(5)) / MASKS
    return taken, (size - gone) * (1 + gone) * raw


def _unmask(given: bytes, specs: list[VectorSpec]) -> None:
    keys = unmasking.read_keys(unmasking.find_keys(given))
    for start in range(0, len(keys), unmasking.KEYS_AT_A_TIME):
        piece = keys[start : start + unmasking.KEYS_AT_A_TIME]
        unmasking.expand(unmasking.encode(unmasking.Expansion(specs, bytes(32), piece)))


def client_seconds(
    size: int, elements: int, bits: int, gone: int = 0, may_go: float = 0.2
) -> tuple[float, float]:
    """Return the seconds of a client among *size*, and of the keystream that its masks take.

    :param gone: how many vanish after they have sent shares.
    """
    spec = VectorSpec("v", elements, 2**bits)
    parameters = full(size, may_go)
    client = SecAggClient(size, parameters.threshold, [spec], os.urandom)
    client.set_input({"v": np.zeros(elements, np.uint64)})
    mine = client.start().pair_of_public_keys
    others = [(KeyPair.make(os.urandom), KeyPair.make(os.urandom)) for _ in range(size - 1)]
    keys = pb.ShareKeysRequest(session_id=bytes(32), pairs_of_public_keys=[mine])
    shares = pb.PairOfKeyShares(noise_sk_share=bytes(36), prf_sk_share=bytes(36))
    collect = pb.MaskedInputCollectionRequest(encrypted_key_shares=[b""])
    for noise, enc in others:
        keys.pairs_of_public_keys.add(noise_pk=noise.public, enc_pk=enc.public)
        sealed = seal(enc.agree(mine.enc_pk), shares.SerializeToString(), os.urandom)
        collect.encrypted_key_shares.append(sealed)
    spent = 0.0
    last = pb.UnmaskingRequest(dead_3_client_ids=range(size - gone + 1, size + 1))
    for message in (keys, collect, last):
        spent += seconds(functools.partial(client.receive, message))
    return spent, seconds(lambda: keystream(size * elements * -(-bits // 8)))


def server_cost(size: int) -> tuple[float, int]:
    """Return the server's seconds for each device in a sub-graph, and the degree.

    The clients are played: what they send has the right form, and costs nothing to make.
    """
    wanted = Requirements(Adversary.CURIOUS_SERVER, 0.05, 0.1, 1)
    degree, threshold = find_subgraph(size, wanted)
    spec = VectorSpec("v", 1, 2**16)
    graph = Parameters(size, degree, threshold, size // 2, full=False).graph(os.urandom)
    server = SecAggServer(graph, [spec], size // 2)
    gone = range(size // 20)
    advertised = [
        pb.AdvertiseKeys(pair_of_public_keys={"noise_pk": noise, "enc_pk": enc})
        for noise, enc in (
            (KeyPair.make(os.urandom).public, KeyPair.make(os.urandom).public) for _ in range(size)
        )
    ]
    shared = []
    for client in range(size):
        sealed = [b"" if other == client else bytes(104) for other in graph.neighbours(client)]
        shared.append(pb.ShareKeysResponse(encrypted_key_shares=sealed))
    masked = pb.MaskedInputCollectionResponse()
    masked.vectors["v"].encoded_vector = bytes(2)
    told = []
    for client in range(size):
        told.append(pb.UnmaskingResponse())
        for other in graph.neighbours(client):
            kind = "noise_sk_share" if other in gone else "prf_sk_share"
            told[-1].noise_or_prf_key_shares.add(**{kind: os.urandom(36)})

    def run() -> None:
        rounds: tuple[list[Any], ...] = (advertised, shared, [masked] * size, told)
        for round_, messages in enumerate(rounds):
            for client in range(len(gone) if round_ > 1 else 0, size):
                server.receive(client, messages[client])
            server.proceed()
        unmasking.find_keys(unmasking.encode(server.keys()))

    return seconds(run) / size, degree


def expansion(users: int, elements: int, bits: int) -> float:
    """Return what a client sends and receives, divided by its vector in the clear."""
    spec = VectorSpec("v", elements, 2**bits * users)
    shares = pb.PairOfKeyShares(noise_sk_share=bytes(36), prf_sk_share=bytes(36))
    sealed = seal(bytes(32), shares.SerializeToString(), os.urandom)
    pair = pb.PairOfPublicKeys(noise_pk=bytes(33), enc_pk=bytes(33))
    told = pb.NoiseOrPrfKeyShare(prf_sk_share=bytes(36))
    messages = (
        pb.AdvertiseKeys(pair_of_public_keys=pair),
        pb.ShareKeysRequest(session_id=bytes(32), pairs_of_public_keys=[pair] * users),
        pb.ShareKeysResponse(encrypted_key_shares=[sealed] * (users - 1)),
        pb.MaskedInputCollectionRequest(encrypted_key_shares=[sealed] * (users - 1)),
        pb.UnmaskingRequest(),
        pb.UnmaskingResponse(noise_or_prf_key_shares=[told] * users),
    )
    sizes = spec.packed_size + sum(message.ByteSize() for message in messages)
    return sizes / (elements * bits / 8)


def published() -> None:
    """Print what the papers say, and ours beside it."""
    for (users, elements), theirs in EXPANSION.items():
        ours = expansion(2**users, 2**elements, 16)
        what = f"messages of 2^{users} users, 2^{elements} elements of 16 bits / in the clear"
        print(f"  {what}: {ours:.2f} x (published {theirs:.2f} x)")
    lying = Requirements(Adversary.SEMI_MALICIOUS_SERVER, 0.05, 0.05, 5000)
    degree, _ = find_subgraph(10_000, lying)
    what = "neighbours of one of 10,000, 5 % corrupt, 5 % gone, a server that lies"
    print(f"  {what}: {(degree - 1) / 10_000:.1%} (published {NEIGHBOURS:.0%}, with more promised)")
    looking = Requirements(Adversary.CURIOUS_SERVER, 0.05, 0.05, 500_000)
    degree, _ = find_subgraph(1_000_000, looking)
    what = "neighbours of one of 1,000,000, a server that looks"
    print(f"  {what}: {degree - 1} (published: below 1,000 of a billion)")


def table() -> None:
    """Print what clients and the server take where the paper of 2017 says it of theirs."""
    print("clients, elements of 24 bits, gone: a client; the server's unmasking (its keystream)")
    for size in (500, 1000):
        for gone in (0, size // 10, 3 * size // 10):
            client, _ = client_seconds(size, 100_000, 24, gone, 1 / 3)
            taken, raw = unmask(size, 100_000, 24, gone, 1 / 3)
            times = f"{client:.3f} s; {taken:.1f} s ({raw:.1f} s)"
            print(f"{size:5}, 100,000, {gone / size:4.0%}: {times}", flush=True)


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    elements = 100_000 if quick else 1_000_000
    loops = "NumPy" if LOOPS is None else "compiled loops"
    found = [
        Goal(
            "secagg",
            f"masks of {elements:,} elements of {bits} bits, {loops} / their keystream",
            mask_speed(bits, elements),
            MASK_SPEED,
            at_most=False,
        )
        for bits in (16, 24, 32)
    ]
    taken, raw = unmask(100, elements, 32, gone=10)
    what = f"unmasking 100 devices, {elements:,} elements of 32 bits, 10 % gone / its keystream"
    found.append(Goal("secagg", what, taken / raw, UNMASKING))
    for size in (100, 500, 1000):
        client, raw = client_seconds(size, 100_000, 24)
        print(f"  a client of {size}, 100,000 of 24 bits: {client:.3f} s (keystream {raw:.3f} s)")
    published()
    costs = [server_cost(size) for size in ((100, 1000) if quick else (100, 1000, 10_000))]
    for cost, degree in costs:
        print(f"  a sub-graph of degree {degree}: {1e3 * cost:.2f} ms a device")
    (small, first), (large, last) = costs[0], costs[-1]
    what = f"the server's time for a device, degree {last} to degree {first} / that of the degrees"
    found.append(Goal("secagg", what, large / small / (last / first), GROWTH))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller vectors and cohorts")
    parser.add_argument("--table", action="store_true", help="the paper's table, with our times")
    arguments = parser.parse_args()
    if arguments.table:
        table()
        return
    for goal in goals(arguments.quick):
        print("  ".join(goal.row()))


if __name__ == "__main__":
    main()
