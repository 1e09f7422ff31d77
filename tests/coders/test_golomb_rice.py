"""Golomb-Rice codes against their definition as text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coders.oracles import rice, spec_of, stream_of, symbols_of
from thriftgrad import PayloadError, TensorSpec
from thriftgrad.wire.coders import GolombRice


@pytest.mark.parametrize("alphabet", [1, 2, 1000, 1 << 40])
@given(data=st.data())
def test_a_stream_is_the_parameter_and_the_codes_in_order(alphabet: int, data: st.DataObject) -> None:
    small = st.integers(0, min(alphabet - 1, 50))
    values = data.draw(st.lists(st.one_of(small, small, st.integers(0, alphabet - 1)), max_size=40))
    spec, width = spec_of(len(values), alphabet), (alphabet - 1).bit_length()
    stream = GolombRice().encode(symbols_of(spec, values), spec)
    k = int(stream[0])
    assert torch.equal(stream[1:], stream_of("".join(rice(value, k, width) for value in values)))
    assert GolombRice().decode(stream, spec).tolist() == values
    assert len(stream) <= 1 + -(-len(values) * (width + 1) // 8) == GolombRice().limit_bytes(spec)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.001])
def test_the_parameter_is_the_best_one_for_gaps(density: float) -> None:
    """Gaps between independent events are geometric: the best of all parameters, and near their entropy."""
    gaps = np.random.default_rng(0).geometric(density, 20_000) - 1
    spec = TensorSpec((20_000,), torch.int64, alphabet=1 << 20)
    stream = GolombRice().encode(torch.from_numpy(gaps), spec)
    lengths = [sum(len(rice(int(gap), k, 20)) for gap in gaps[:4000]) for k in range(21)]
    assert stream[0] == int(np.argmin(lengths))
    entropy = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) / density
    assert entropy * 0.99 < 8 * len(stream) / 20_000 < entropy * 1.04 + 0.01


@pytest.mark.parametrize(
    ("k", "bits", "message"),
    [
        (11, "1" * 8, "parameter 11 where one from 0 to 10"),
        (0, "0" * 24, "ends inside a code|codes cannot lie"),
        (0, "0" * 24 + f"{23:010b}", "written out where a shorter code exists"),
        (9, "001" + "0" * 9, "symbol 1024 outside the alphabet of 1000"),
        (0, "1" + "0" * 15, "1 bytes follow the last code"),
        (0, "11", "fill the last byte are not zero"),
        (0, "", "1 codes cannot lie in the 0 bits"),
    ],
)
def test_hostile_streams(k: int, bits: str, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        GolombRice().decode(torch.cat((torch.tensor([k], dtype=torch.uint8), stream_of(bits))), spec_of(1, 1000))


def test_no_bytes_at_all() -> None:
    with pytest.raises(PayloadError, match="no parameter where one from 0 to 10 stands first"):
        GolombRice().decode(torch.empty(0, dtype=torch.uint8), spec_of(1, 1000))
