"""Each primitive against the plainest way to compute it, and by what always holds."""

import hashlib
import random
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fcp_secagg import masks, primitives, shamir
from fcp_secagg.masks import MaskSum
from fcp_secagg.packing import MAX_MODULUS, VectorSpec, pack, unpack
from fcp_secagg.primitives import KeyPair

MODULI = st.one_of(
    st.integers(2, 300),
    st.integers(1, 62).map(lambda bits: 2**bits),
    st.integers(2, MAX_MODULUS),
    st.integers(2, 61).map(lambda bits: 2**bits + 1),
)


def vector_of(seed, length, modulus):
    rng = random.Random(seed)
    return np.array([rng.randrange(modulus) for _ in range(length)], np.uint64)


# Keys.


def test_a_shared_secret_is_the_x_coordinate_of_the_shared_point():
    """Computed on the curve itself, with nothing but its equation."""
    p = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

    def plus(one, two):
        if one is None or two is None:
            return one or two
        (x1, y1), (x2, y2) = one, two
        if x1 == x2:
            if (y1 + y2) % p == 0:
                return None
            slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, p)
        else:
            slope = (y2 - y1) * pow(x2 - x1, -1, p)
        x = (slope * slope - x1 - x2) % p
        return x, (slope * (x1 - x) - y1) % p

    def times(number, point):
        total = None
        while number:
            if number & 1:
                total = plus(total, point)
            point, number = plus(point, point), number >> 1
        return total

    mine, other = KeyPair((7).to_bytes(32, "big")), KeyPair(bytes(range(1, 33)))
    x = int.from_bytes(other.public[1:], "big")
    y = pow(x**3 - 3 * x + b, (p + 1) // 4, p)
    y = y if y % 2 == other.public[0] - 2 else p - y
    shared = times(7, (x, y))
    assert shared is not None
    assert mine.agree(other.public) == shared[0].to_bytes(32, "big")
    assert other.agree(mine.public) == mine.agree(other.public)


def test_a_private_key_is_32_bytes_and_can_be_forgotten():
    pair = KeyPair.make(random.Random(1).randbytes)
    assert len(pair.private) == 32
    assert len(pair.public) == 33
    known = KeyPair(bytes(pair.private))
    assert known.public == pair.public
    pair.forget()
    assert bytes(pair.private) == bytes(32)
    with pytest.raises(ValueError, match="forgotten"):
        pair.agree(known.public)
    for wrong in (bytes(32), b"\xff" * 32, bytes(31)):
        with pytest.raises(ValueError, match="private key"):
            KeyPair(wrong)


@pytest.mark.parametrize("wrong", [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x05" * 33, bytes(65)])
def test_what_is_no_point_is_refused(wrong):
    with pytest.raises(ValueError, match=r".+"):
        primitives.check_public_key(wrong)


def test_fresh_keys_differ_and_skip_numbers_outside_the_curves_order():
    drawn = [b"\xff" * 32, bytes(32), (5).to_bytes(32, "big")]
    assert bytes(KeyPair.make(lambda size: drawn.pop(0)).private) == (5).to_bytes(32, "big")


def test_sealed_shares_are_iv_ciphertext_and_tag():
    key, vector = bytes(range(32)), bytes(range(50, 62))
    sealed = primitives.seal(key, b"two shares", lambda size: vector[:size])
    assert sealed[:12] == vector
    assert len(sealed) == 12 + len(b"two shares") + 16
    assert AESGCM(key).decrypt(vector, sealed[12:], None) == b"two shares"
    assert primitives.unseal(key, sealed) == b"two shares"
    for wrong in (b"", sealed[:27], sealed[:-1], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(ValueError, match="share"):
            primitives.unseal(key, wrong)


def test_the_session_id_hashes_each_key_behind_a_length():
    keys = [(b"abc", b"defg"), (b"", b""), (b"hi", b"j")]
    text = b"\0\0\0\x03abc\0\0\0\x03defg" + b"\0\0\0\0\0\0\0\0" + b"\0\0\0\x02hi\0\0\0\x02j"
    assert primitives.session_id(keys) == hashlib.sha256(text).digest()


# Sharing.


def evaluated(secret, threshold, indices, coefficients):
    """Return shares by the definition: a polynomial for each 31 bits, at the index and one."""
    number, pieces = int.from_bytes(secret, "big"), -(-8 * len(secret) // 31)
    shares = []
    for index in indices:
        share = b""
        for place in reversed(range(pieces)):
            value = (number >> 31 * place) % 2**31
            for power in range(1, threshold):
                row = coefficients[threshold - 1 - power]
                value += row[pieces - 1 - place] * (index + 1) ** power
            share += (value % (2**31 + 11)).to_bytes(4, "big")
        shares.append(share)
    return shares


@given(st.binary(min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 3), st.integers())
def test_shares_are_the_polynomials_at_the_index_plus_one(secret, threshold, more, seed):
    count = threshold + more
    rng = random.Random(seed)
    shares = shamir.split(secret, threshold, count, rng.randbytes)
    pieces = shamir.piece_count(len(secret))
    drawn = shamir._elements((threshold - 1) * pieces, random.Random(seed).randbytes)
    rows = drawn.reshape(threshold - 1, pieces).tolist()
    assert shares == evaluated(secret, threshold, range(count), rows)


def test_any_shares_that_are_enough_give_the_secret_by_exact_interpolation():
    """A worked vector: 4 bytes are two pieces, 1 bit and 31 bits; coefficients as written here."""
    secret, rows = (0xDEADBEEF).to_bytes(4, "big"), [[5, 2**31 + 10], [3, 123456789]]
    shares = evaluated(secret, 3, range(5), rows)
    for chosen in ((0, 1, 2), (4, 2, 0), (1, 3, 4)):
        pieces = []
        for piece in range(2):
            total = Fraction(0)
            for index in chosen:
                weight = Fraction(1)
                for other in chosen:
                    if other != index:
                        weight *= Fraction(other + 1, other - index)
                value = int.from_bytes(shares[index][4 * piece : 4 * piece + 4], "big")
                total += value * weight
            pieces.append(total.numerator * pow(total.denominator, -1, shamir.PRIME) % shamir.PRIME)
        assert (pieces[0] << 31 | pieces[1]).to_bytes(4, "big") == secret
        given_shares = {index: shares[index] for index in chosen}
        assert shamir.Reconstructions(3).secret(given_shares, 4) == secret


@given(st.integers(2, 12), st.integers(0, 12), st.data())
def test_as_many_shares_as_the_threshold_give_the_secret(threshold, more, data):
    count = threshold + more
    secret = data.draw(st.binary(min_size=32, max_size=32))
    rng = data.draw(st.randoms(use_true_random=False))
    shares = shamir.split(secret, threshold, count, rng.randbytes)
    assert {len(share) for share in shares} == {36}
    chosen = rng.sample(range(count), threshold)
    known = shamir.Reconstructions(threshold)
    assert known.secret({index: shares[index] for index in chosen}, 32) == secret
    with pytest.raises(ValueError, match="are needed"):
        known.secret({index: shares[index] for index in chosen[1:]}, 32)


def test_shares_that_do_not_fit_are_refused():
    shares = shamir.split(bytes(32), 2, 3, random.Random(0).randbytes)
    with pytest.raises(ValueError, match="36 bytes"):
        shamir.Reconstruction([0, 1]).secret([shares[0], shares[1][:-4]], 32)
    with pytest.raises(ValueError, match="twice"):
        shamir.Reconstruction([0, 0])
    for threshold, count in ((1, 3), (4, 3)):
        with pytest.raises(ValueError, match="threshold"):
            shamir.split(bytes(32), threshold, count, random.Random(0).randbytes)


@given(st.integers(2, 8), st.integers(0, 6), st.integers())
def test_a_wrong_share_is_left_out_or_noticed(threshold, more, seed):
    rng = random.Random(seed)
    secret = rng.randbytes(32)
    shares = dict(enumerate(shamir.split(secret, threshold, threshold + more, rng.randbytes)))
    liar = rng.randrange(threshold + more)
    told = bytearray(shares[liar])
    told[rng.randrange(36)] ^= rng.randrange(1, 256)
    shares[liar] = bytes(told)
    known = shamir.Reconstructions(threshold)
    if more >= 2:
        assert known.secret(shares, 32) == secret
    elif more == 1:
        with pytest.raises(ValueError, match="wrong share"):
            known.secret(shares, 32)
    else:
        assert known.secret(shares, 32) is not None  # nobody can tell


def test_two_wrong_shares_are_noticed():
    shares = dict(enumerate(shamir.split(bytes(range(32)), 3, 7, random.Random(1).randbytes)))
    for liar in (2, 5):
        shares[liar] = bytes(36)
    with pytest.raises(ValueError, match="wrong share"):
        shamir.Reconstructions(3).secret(shares, 32)


def test_one_liar_costs_little(monkeypatch):
    """Who lies is computed and not tried out."""
    rng, made = random.Random(3), []

    class Counted(shamir.Agreement):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(shamir, "Agreement", Counted)
    known = shamir.Reconstructions(20)
    for key in range(30):
        secret = rng.randbytes(32)
        shares = dict(enumerate(shamir.split(secret, 20, 60, rng.randbytes)))
        shares = {index: shares[index] for index in sorted({7, *rng.sample(range(60), 40)})}
        shares[7] = bytes(36)
        assert known.secret(shares, 32) == secret
        assert len(made) == 2 * (key + 1)


def test_one_share_fewer_says_nothing():
    """For each secret there is one polynomial through what is known; all are equally likely."""
    shares = {value: set() for value in (0, 1)}
    for coefficient in range(0, shamir.PRIME, shamir.PRIME // 50):
        for secret in shares:
            value = (secret + coefficient * 1) % shamir.PRIME
            shares[secret].add((value - secret) % shamir.PRIME)
    assert shares[0] == shares[1]


# Packing.


def packed_slowly(values, bits):
    """Return the string of bits as one number, least first."""
    number = sum(value << bits * index for index, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


@given(MODULI, st.lists(st.integers(0, 2**64), min_size=1, max_size=40))
def test_elements_lie_one_after_the_other_from_the_lowest_bit(modulus, numbers):
    values = [number % modulus for number in numbers]
    spec = VectorSpec("v", len(values), modulus)
    packed = pack(np.array(values, np.uint64), spec)
    assert packed == packed_slowly(values, spec.bits)
    assert len(packed) == spec.packed_size
    assert unpack(packed, spec).tolist() == values


@pytest.mark.slow
@pytest.mark.parametrize("modulus", [2, 2**17, 2**20, 10**6 + 3, 2**33, 2**62])
def test_long_vectors_are_packed_in_parts_that_fit_together(modulus):
    values = vector_of(3, 20011, modulus)
    spec = VectorSpec("v", len(values), modulus)
    assert pack(values, spec) == packed_slowly(values.tolist(), spec.bits)
    assert (unpack(pack(values, spec), spec) == values).all()


def test_a_worked_packing():
    """5, 6, 7 of 3 bits: 101, 110, 111 from the low end, so 0b111110101."""
    spec = VectorSpec("v", 3, 8)
    assert pack(np.array([5, 6, 7], np.uint64), spec) == bytes([0b11110101, 0b1])


def test_what_is_too_large_is_reduced_once_and_a_wrong_size_refused():
    spec = VectorSpec("v", 2, 5)
    assert unpack(bytes([0b111101]), spec).tolist() == [0, 2]
    with pytest.raises(ValueError, match="takes 1 bytes, there are 2"):
        unpack(bytes(2), spec)


@pytest.mark.parametrize(("length", "modulus"), [(1, 1), (1, 2**62 + 1), (0, 4), (2**32, 4)])
def test_vectors_out_of_range_are_refused(length, modulus):
    with pytest.raises(ValueError, match="vector 'v'"):
        VectorSpec("v", length, modulus)


# Masks.


def expanded_slowly(key, session, spec):
    """Return a mask as the description has it, a sample at a time."""
    bits, name = (spec.modulus - 1).bit_length(), spec.name.encode()
    given_input = session + bits.to_bytes(4, "big") + spec.length.to_bytes(4, "big") + name
    seed = hashlib.sha256(
        bits.to_bytes(4, "big") + key + b"\x02" + len(given_input).to_bytes(4, "big") + given_input
    ).digest()
    encryptor = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    stream, counter, found = b"", 0, []
    width = -(-bits // 8)
    limit = (2**bits - spec.modulus) % spec.modulus
    power = spec.modulus & (spec.modulus - 1) == 0
    while len(found) < spec.length:
        while len(stream) < width:
            stream += encryptor.update(counter.to_bytes(16, "big"))
            counter += 1
        sample = int.from_bytes(stream[:width], "big") % 2**bits
        stream = stream[width:]
        if power:
            found.append(sample)
        elif sample >= limit:
            found.append(sample % spec.modulus)
    return found


LOOPS = [pytest.param(None, id="numpy")]


if masks.LOOPS is not None:
    LOOPS.append(pytest.param(masks.LOOPS, id="compiled"))


@pytest.mark.parametrize("loops", LOOPS)
@given(modulus=MODULI, length=st.integers(1, 60), name=st.text(max_size=5), seed=st.integers())
def test_a_mask_is_what_the_description_says(loops, modulus, length, name, seed):
    rng = random.Random(seed)
    key, session = rng.randbytes(32), rng.randbytes(32)
    spec = VectorSpec(name, length, modulus)
    total = MaskSum(spec, session, loops)
    total.add(key, 1)
    wanted = expanded_slowly(key, session, spec)
    assert total.value().tolist() == wanted
    other = rng.randbytes(32)
    total.add(other, -1)
    minus = expanded_slowly(other, session, spec)
    assert total.value().tolist() == [(a - b) % modulus for a, b in zip(wanted, minus, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("modulus", [2**7, 2**16, 2**24, 2**32, 2**33, 2**48, 2**62, 3, 10**9 + 7])
def test_long_masks_go_over_the_ends_of_the_pieces(loops, modulus):
    spec = VectorSpec("w", 120_000 if modulus < 2**17 else 30_011, modulus)
    total = MaskSum(spec, bytes(32), loops)
    total.add(b"k" * 32, 1)
    assert total.value().tolist() == expanded_slowly(b"k" * 32, bytes(32), spec)


@given(MODULI, st.integers(1, 9), st.integers())
def test_masks_of_pairs_cancel(modulus, length, seed):
    rng = random.Random(seed)
    spec = VectorSpec("v", length, modulus)
    keys = [rng.randbytes(32) for _ in range(4)]
    plus = masks.masks([spec], bytes(32), [(key, 1) for key in keys])["v"]
    minus = masks.masks([spec], bytes(32), [(key, -1) for key in keys])["v"]
    assert not masks.add(plus, minus, spec).any()
    assert (masks.subtract(plus, minus, spec) == masks.add(plus, plus, spec)).all()
