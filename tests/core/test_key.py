"""Keys against the published vectors of the generator, and their two kinds of folding."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftgrad import Key
from thriftgrad.kernels.philox import philox

seeds = st.integers(0, 2**64 - 1)
ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,  # the key's two words, low one first
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, int, int, int], seed: int, words: tuple[int, ...]
) -> None:
    assert philox(counter, seed) == words


@given(seeds, st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.integers(0, 1000))
def test_equal_paths_give_equal_keys(seed: int, number: int, name: str, rank: int) -> None:
    key = Key(seed)
    assert key.fold(number, name) == Key(seed).fold(number).fold(name)
    assert key.private(rank) == Key(seed).private(rank)
    assert 0 <= key.fold(number, name).private(rank).seed < 2**64


def test_different_paths_give_different_keys() -> None:
    key = Key(1)
    paths = [
        key,
        *(key.fold(i) for i in range(-50, 200)),
        *(key.fold(2**32 + i) for i in range(50)),
        *(key.private(i) for i in range(200)),
        *(key.fold(str(i)) for i in range(200)),
        *(key.fold(i, j) for i in range(20) for j in range(20)),
        *(key.fold(i).private(j) for i in range(10) for j in range(10)),
        key.fold(""),
        key.fold("a", "b"),
        key.fold("ab"),
        key.fold("b", "a"),
        *(Key(i).fold(1) for i in range(2, 50)),
    ]
    assert len({path.seed for path in paths}) == len(paths)


def test_folding_is_not_symmetric_in_seed_and_salt() -> None:
    assert Key(1).fold(2) != Key(2).fold(1)


def test_every_bit_of_a_seed_flips_half_of_the_key() -> None:
    distances = [(Key(5).fold(1).seed ^ Key(5 ^ 1 << bit).fold(1).seed).bit_count() for bit in range(64)]
    distances += [(a.seed ^ b.seed).bit_count() for a, b in pairwise(Key(5).fold(i) for i in range(64))]
    assert 30 < sum(distances) / len(distances) < 34
    assert min(distances) > 12


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"Key: seed must lie in \[0, 2\*\*64\), got {seed}"):
        Key(seed)
