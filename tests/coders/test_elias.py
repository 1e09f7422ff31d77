"""Elias codes against their definitions as text, the papers' table of lengths, and NUQSGD's bound on bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coders.oracles import bits_of, delta, gamma, omega, spec_of, stream_of, symbols_of
from thriftgrad import PayloadError, TensorSpec
from thriftgrad.wire.coders import Elias

ORACLES: dict[str, Callable[[int], str]] = {"gamma": gamma, "delta": delta, "omega": omega}
codes = pytest.mark.parametrize("code", ORACLES)
LARGE = 1 << 44


def code_of(code: str, number: int) -> str:
    """One number's code as text; what fills the last byte is left on."""
    spec = spec_of(1, LARGE)
    return bits_of(Elias(code).encode(symbols_of(spec, [number - 1]), spec))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "number", "bits"),
    [
        *(("gamma", n, c) for n, c in ((1, "1"), (2, "010"), (3, "011"), (4, "00100"), (17, "000010001"))),
        *(("delta", n, c) for n, c in ((1, "1"), (2, "0100"), (3, "0101"), (4, "01100"), (17, "001010001"))),
        *(("omega", n, c) for n, c in ((1, "0"), (2, "100"), (3, "110"), (4, "101000"), (7, "101110"))),
        *(("omega", n, c) for n, c in ((8, "1110000"), (15, "1111110"), (16, "10100100000"), (100, "1011011001000"))),
    ],
)
def test_known_codes(code: str, number: int, bits: str) -> None:
    assert ORACLES[code](number) == bits
    assert code_of(code, number) == bits + "0" * (-len(bits) % 8)


def test_lengths_of_the_recursive_code() -> None:
    """The papers' table."""
    table = {1: 1, 2: 3, 3: 3, 4: 6, 7: 6, 8: 7, 15: 7, 16: 11, 31: 11, 100: 13}
    assert {n: len(omega(n)) for n in table} == table
    assert {n: Elias()._bits(n) for n in table} == table


@codes
@given(numbers=st.lists(st.one_of(st.integers(1, 40), st.integers(1, LARGE)), max_size=40))
def test_dense_without_zero_is_the_codes_in_order(code: str, numbers: list[int]) -> None:
    spec = spec_of(len(numbers), LARGE)
    symbols = symbols_of(spec, [n - 1 for n in numbers])
    stream = Elias(code).encode(symbols, spec)  # type: ignore[arg-type]
    assert torch.equal(stream, stream_of("".join(map(ORACLES[code], numbers))))
    assert torch.equal(Elias(code).decode(stream, spec), symbols)  # type: ignore[arg-type]


@codes
@given(offsets=st.lists(st.integers(-7, 8), max_size=60))
def test_dense_with_zero_is_magnitudes_then_signs(code: str, offsets: list[int]) -> None:
    spec = spec_of(len(offsets), 16, zero=7)
    symbols = symbols_of(spec, [7 + offset for offset in offsets])
    stream = Elias(code).encode(symbols, spec)  # type: ignore[arg-type]
    bits = "".join(ORACLES[code](abs(offset) + 1) for offset in offsets)
    bits += "".join("1" if offset < 0 else "0" for offset in offsets if offset)
    assert torch.equal(stream, stream_of(bits))
    assert torch.equal(Elias(code).decode(stream, spec), symbols)  # type: ignore[arg-type]


@codes
@pytest.mark.parametrize("zero", [0, 7])
@given(data=st.data())
def test_sparse_is_number_gaps_signs_magnitudes(code: str, zero: int, data: st.DataObject) -> None:
    rarely = st.one_of(st.just(zero), st.just(zero), st.integers(0, 14))
    values = data.draw(st.lists(rarely, max_size=80))
    spec, oracle = spec_of(len(values), 15, zero=zero), ORACLES[code]
    where = [i for i, value in enumerate(values) if value != zero]
    bits = oracle(len(where) + 1)
    bits += "".join(oracle(i - before) for before, i in zip([-1, *where], where, strict=False))
    bits += "".join("1" if values[i] < zero else "0" for i in where) if zero else ""
    bits += "".join(oracle(abs(values[i] - zero)) for i in where)
    coder = Elias(code, sparse=True)  # type: ignore[arg-type]
    stream = coder.encode(symbols_of(spec, values), spec)
    assert torch.equal(stream, stream_of(bits))
    assert coder.decode(stream, spec).tolist() == values


def nuqsgd_symbols(s: int, d: int) -> tuple[torch.Tensor, TensorSpec]:
    """A Gaussian vector, rounded without bias to 0, 2**-s ... 1/2, 1 times its length, as level numbers with signs."""
    rng = np.random.default_rng(s)
    v = rng.standard_normal(d)
    r = np.abs(v) / np.linalg.norm(v)
    levels = np.array([0.0, *(2.0**-j for j in range(s, -1, -1))])
    below = np.searchsorted(levels, r, side="right") - 1
    up = rng.random(d) < (r - levels[below]) / (levels[below + 1] - levels[below])
    zero = s + 1
    symbols = torch.from_numpy(zero + np.sign(v).astype(int) * (below + up))
    return symbols, TensorSpec((d,), torch.int64, alphabet=2 * zero + 1, zero=zero)


@pytest.mark.parametrize(("s", "d", "bound"), [(3, 1_000_000, 107_038), (2, 100_000, 16_046)])
def test_nuqsgd_needs_no_more_bits_than_proven(s: int, d: int, bound: int) -> None:
    """Ramezani-Kebrya et al. (2021), code length of the sparse form; 32 bits are the norm's."""
    n = 4**s + 2**s * math.sqrt(d)  # the most nonzeros to expect
    proven = 32 + 3 * n + n * math.log2(d / n) + n * math.log2(math.log2(8 * (4**s + d) / n))
    assert proven == pytest.approx(bound, abs=1)
    symbols, spec = nuqsgd_symbols(s, d)
    coder = Elias("omega", sparse=True)
    stream = coder.encode(symbols, spec)
    assert torch.equal(coder.decode(stream, spec), symbols)
    nonzeros = int((symbols != spec.zero).sum())
    assert nonzeros <= n
    assert 0.8 * proven < 32 + 8 * len(stream) <= proven
    if s == 3:
        assert nonzeros == pytest.approx(6367, rel=0.03)
        assert 32 + 8 * len(stream) == pytest.approx(94_867, rel=0.03)


@pytest.mark.parametrize(
    ("coder", "bits", "count", "message"),
    [
        (Elias("gamma"), "0" * 8000, 5, "a code has no end"),
        (Elias("delta"), "0" * 8000, 5, "a code has no end"),
        (Elias("omega"), "1" * 8000, 5, "a code has no end"),
        (Elias("gamma"), "00000001", 1, "inside a code"),
        (Elias("gamma"), "", 1, "1 codes cannot lie in the 0 bits"),
        (Elias("gamma"), "1" * 8, 9, "9 codes cannot lie in the 8 bits"),
        (Elias("gamma"), gamma(40) + "1", 1, "says 40 where at most 9"),
        (Elias("gamma"), "1" * 8, 7, "fill the last byte are not zero"),
        (Elias("gamma"), "1" * 8 + "0" * 8, 8, "1 bytes follow"),
        (Elias("gamma"), gamma(9) + "1", 1, "symbol -1 outside the alphabet of 16"),
        (Elias("gamma", sparse=True), gamma(7), 5, "says 7 where at most 6"),
        (Elias("gamma", sparse=True), gamma(2) + gamma(6), 5, "says 6 where at most 5"),
        (Elias("gamma", sparse=True), gamma(3) + gamma(5) + gamma(1) + "0011", 5, "position 5 of 5"),
        (Elias("gamma", sparse=True), gamma(2) + gamma(3) + "0" + gamma(10), 5, "says 10 where at most 8"),
    ],
)
def test_hostile_streams(coder: Elias, bits: str, count: int, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        coder.decode(stream_of(bits), spec_of(count, 16, zero=7))


def test_without_a_zero_there_are_no_gaps() -> None:
    with pytest.raises(ValueError, match="no symbol of its carrier stands for zero"):
        Elias(sparse=True).encode(torch.zeros(3, dtype=torch.uint8), spec_of(3, 16))
    with pytest.raises(ValueError, match="no symbol of its carrier stands for zero"):
        Elias(sparse=True).limit_bytes(spec_of(3, 16))


def test_an_unknown_code() -> None:
    with pytest.raises(ValueError, match="code must be 'gamma', 'delta' or 'omega', got 'alpha'"):
        Elias("alpha")  # type: ignore[arg-type]
