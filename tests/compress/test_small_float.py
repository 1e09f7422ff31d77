"""Small floating-point numbers, against torch's own casts, tables written out, and the worst input there is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samples import compressed, vector
from thriftgrad import ErrorFeedback, Huffman, Key, SmallFloat, TensorSpec, TopK, wire
from thriftgrad.core import Payload

NATIVE = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
POSITIVE: dict[str, list[float]] = {
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e3m0": [0, 0.25, 0.5, 1, 2, 4, 8, 16],
    **{
        name: [v for v in torch.arange(128).to(torch.uint8).view(kind).float().tolist() if abs(v) < float("inf")]
        for name, kind in NATIVE.items()
    },
}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "e2m1": 6.0, "e3m0": 16.0}
EVERY = pytest.mark.parametrize("name", POSITIVE)


def make(name: Any, **more: Any) -> SmallFloat:
    return SmallFloat(name, **more)


def every_half(name: str) -> torch.Tensor:
    """All finite float16 numbers up to the format's largest, which comes first: ties, underflow and both signs."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    x = x[x.isfinite() & (x.abs() <= LARGEST[name])]
    return torch.cat((torch.tensor([LARGEST[name]]), x))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("power", [0, -100, 90])
def test_eight_bits_are_the_casts_of_torch(name: str, power: int) -> None:
    """Values and bytes, at scales of powers of two, which leave the scaled values as they are."""
    x = every_half(name)
    payload, _ = make(name, bucket=None).compress(x * 2.0**power, None, Key(0))
    cast = x.to(NATIVE[name])
    assert torch.equal(make(name, bucket=None).decompress(payload), cast.float() * 2.0**power)
    code = cast.view(torch.uint8)
    assert torch.equal(payload.carrier, torch.where(code == 0x80, 0, code))  # one zero


@pytest.mark.parametrize("name", NATIVE)
def test_eight_bits_at_any_scale(name: str) -> None:
    x = vector("heavy", 4000)
    rows = x.view(-1, 16).double()
    scale = rows.abs().amax(1, keepdim=True) / LARGEST[name]
    expected = (rows / scale).float().to(NATIVE[name]).double() * scale
    assert torch.equal(compressed(make(name, bucket=16), x), expected.float().view(-1))


@EVERY
def test_the_nearest_number_and_the_even_code_in_the_middle(name: str) -> None:
    numbers = torch.tensor(POSITIVE[name])
    x = every_half(name) if name in NATIVE else torch.cat((numbers[-1:], torch.linspace(-16, 16, 2049)))
    x = x[x.abs() <= LARGEST[name]]
    distance = (x.abs()[:, None].double() - numbers.double()).abs()
    near = distance == distance.amin(1, keepdim=True)
    odd_last = torch.arange(len(numbers)) % 2 + ~near * 2
    expected = numbers[odd_last.argmin(1)].copysign(x)
    assert near.sum() > len(x)  # some stand in the middle
    assert torch.equal(compressed(make(name, bucket=None), x), expected)


@EVERY
def test_the_codes_of_the_format_are_what_travels(name: str) -> None:
    """Sign, exponent, mantissa: code i is the i-th number, and the top bit its sign."""
    numbers = torch.tensor(POSITIVE[name])
    bits = 8 if name in NATIVE else 4
    x = torch.cat((numbers, -numbers[1:]))
    payload, _ = make(name, bucket=None).compress(x, None, Key(0))
    codes = torch.arange(len(numbers))
    assert payload.carrier.tolist() == torch.cat((codes, codes[1:] + 2 ** (bits - 1))).tolist()
    assert payload.side.scale.tolist() == [LARGEST[name]]
    assert (payload.layout.carrier.alphabet, payload.layout.carrier.zero) == (2**bits, 0)
    assert len(wire.pack(payload)) == wire.HEADER_BYTES + -(-len(x) * bits // 8) + 4


@EVERY
@pytest.mark.parametrize("n", [2, 5, 100, 512])
def test_the_claim_is_the_worst_case_and_no_more(name: str, n: int) -> None:
    """One coordinate at the top, the others all in one middle: the worst of these inputs loses what is claimed."""
    numbers = torch.tensor(POSITIVE[name]).double()
    lost = []
    for middle in ((numbers[1:] + numbers[:-1]) / 2).tolist():
        x = torch.full((n,), middle)
        x[n // 2] = LARGEST[name]
        error = compressed(make(name, bucket=None), x).double() - x.double()
        lost.append(float(error.square().sum() / x.double().square().sum()))
    assert 1 - max(lost) == pytest.approx(make(name, bucket=None).contraction(n), rel=1e-12)
    assert 1 - max(lost) >= 1 / n


@pytest.mark.parametrize(
    ("name", "n", "bucket", "delta"),
    [
        ("e4m3", 1, None, 1.0),
        ("e4m3", 0, 16, 1.0),
        ("e4m3", 2, None, 1 - 16**2 / (448**2 + 272**2)),  # 256 ... 288
        ("e2m1", 10_000, 512, 1 - 511 / 16 / (36 + 511 / 16)),  # 0 ... 0.5
        ("e3m0", 10_000, 512, 1 - 511 * 16 / (256 + 511 * 144)),  # 8 ... 16
        ("e3m0", 10**9, None, 256 / (256 + (10**9 - 1) / 64)),  # 0 ... 0.25
    ],
)
def test_contractions_by_their_closed_forms(name: str, n: int, bucket: int | None, delta: float) -> None:
    assert make(name, bucket=bucket).contraction(n) == pytest.approx(delta, rel=1e-12)


@EVERY
def test_rounded_numbers_stay(name: str) -> None:
    once = compressed(make(name, bucket=32), vector("heavy", 1000))
    assert torch.equal(compressed(make(name, bucket=32), once), once)


@EVERY
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_the_largest_is_exact_and_no_error_exceeds_its_coordinate(name: str, values: list[float]) -> None:
    x = torch.tensor(values)
    estimate = compressed(make(name, bucket=None), x)
    top = x.abs().argmax()
    assert estimate[top] == x[top]
    assert (estimate.double() - x).abs().le(x.abs().double() * (1 + 1e-7)).all()
    assert (estimate * x.sign() >= 0).all()


@EVERY
def test_far_from_one(name: str) -> None:
    for value in (1e-45, 1e-38, 1e-30, 1e30, 3.4028234663852886e38):
        x = torch.tensor([value, -value, 0.0, value / 2])
        estimate = compressed(make(name), x)
        assert torch.equal(estimate[:3], x[:3])
        assert estimate[3] in (x[3], x[0])  # half of the least number there is is none
    assert compressed(make(name), torch.tensor([1e30, 1e-30])).tolist() == [torch.tensor(1e30).item(), 0.0]


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_spoils_its_bucket_alone(name: str, bad: float) -> None:
    x = vector("gaussian", 12)
    x[5] = bad
    estimate = compressed(make(name, bucket=4), x)
    assert estimate[4:8].isnan().all()
    assert torch.equal(estimate[:4], compressed(make(name, bucket=4), x[:4]))
    assert estimate[8:].isfinite().all()


@EVERY
def test_codes_that_are_no_numbers(name: str) -> None:
    layout = make(name, bucket=None).layout(TensorSpec((256 if name in NATIVE else 16,)))
    codes = torch.arange(layout.carrier.numel).to(torch.uint8)
    one = make(name, bucket=None).compress(torch.tensor([LARGEST[name]]), None, Key(0))[0]
    values = make(name, bucket=None).decompress(Payload(codes, one.side, layout))
    assert int(values.isnan().sum()) == {"e4m3": 2, "e5m2": 8, "e2m1": 0, "e3m0": 0}[name]
    assert not values.isinf().any()


def test_behind_a_sparsifier_before_a_coder_and_with_a_memory() -> None:
    x = vector("heavy", 400)
    chain = TopK(k=40) >> make("e3m0") >> Huffman()
    assert chain.contraction(400) == pytest.approx(0.1 * make("e3m0").contraction(40))
    kept = x.abs().topk(40).indices.sort().values
    expected = torch.zeros(400)
    expected[kept] = compressed(make("e3m0"), x[kept])
    assert torch.equal(compressed(chain, x), expected)
    ErrorFeedback(chain)


@pytest.mark.parametrize(
    ("make_it", "kind", "words"),
    [
        (lambda: make("e4m4"), ValueError, 'format must be "e4m3", "e5m2", "e2m1" or "e3m0", got \'e4m4\'.'),
        (lambda: make("e4m3", bucket=0), ValueError, "SmallFloat: bucket must be at least 1, got 0."),
        (lambda: make("e4m3", bucket=1.5), TypeError, "SmallFloat: bucket must be an integer, got 1.5."),
    ],
)
def test_bad_settings(make_it: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        make_it()
