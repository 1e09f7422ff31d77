"""The k largest magnitudes, exactly: on large tensors too, where a sample guesses and may be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thriftgrad.compress import top_k
from thriftgrad.compress.top_k import SAMPLE, largest

LARGE = 5 * SAMPLE + 77
STRIDE = LARGE // SAMPLE


def order(x: Tensor) -> Any:
    """numpy's stable sort of what coordinates are ranked by: the oracle."""
    magnitude = np.abs(x.double().numpy())
    return np.argsort(-np.where(np.isnan(magnitude), np.inf, magnitude), kind="stable")


def by_sorting(x: Tensor, k: int) -> list[int]:
    return sorted(order(x)[:k].tolist())


def normal(n: int = LARGE, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def misleading(sampled: float, others: float) -> Tensor:
    """The elements that the sample sees are of another size than those it does not."""
    x = normal().sign() * others * (1 + torch.arange(LARGE) / LARGE)
    x[::STRIDE] = sampled * normal()[::STRIDE]
    return x


def with_bad(x: Tensor, bad: float, places: slice) -> Tensor:
    x[places] = bad
    return x


HARD: dict[str, Tensor] = {
    "gaussian": normal(),
    "heavy": normal() ** 7,
    "ties": (normal() * 2).round(),
    "all equal": torch.full((LARGE,), -2.5),
    "all zero": torch.zeros(LARGE),
    "both zeros": torch.zeros(LARGE) * normal().sign(),
    "one-hot": torch.nn.functional.one_hot(torch.tensor(LARGE - 1), LARGE).float() * -3,
    "few that are not zero": torch.where(torch.arange(LARGE) % 997 == 5, normal(), 0.0),
    "ascending": torch.arange(LARGE).float(),
    "descending": -torch.arange(LARGE).float().flip(0),
    "the sample sees only large ones": misleading(1e3, 1.0),
    "the sample sees only small ones": misleading(1e-6, 1.0),
    "the sample sees only zeros": misleading(0.0, 1.0),
    "a NaN": with_bad(normal(), torch.nan, slice(11, 12)),
    "many NaN": with_bad(normal(), torch.nan, slice(0, None, 3)),
    "the sample sees only NaN": with_bad(normal(), torch.nan, slice(0, None, STRIDE)),
    "infinities of both signs": with_bad(
        with_bad(normal(), torch.inf, slice(5, 9)), -torch.inf, slice(900, None, 1000)
    ),
    "NaN before infinities": with_bad(with_bad(normal(), torch.inf, slice(70, 90)), torch.nan, slice(80, 85)),
    "huge": normal() * 1e38,
    "denormal": normal() * 1e-42,
}


@pytest.mark.parametrize("kind", HARD)
def test_the_largest_are_those_that_sorting_finds(kind: str) -> None:
    x, ranked = HARD[kind], order(HARD[kind])
    for k in (1, 2, 82, 820, LARGE // 10, LARGE // 4, LARGE // 4 + 1, LARGE // 2, LARGE - 1, LARGE):
        assert np.array_equal(largest(x, k).numpy(), np.sort(ranked[:k]))


@pytest.mark.parametrize("n", [4 * SAMPLE - 1, 4 * SAMPLE, 4 * SAMPLE + 1, 9 * SAMPLE - 1])
def test_around_the_size_from_which_there_is_a_sample(n: int) -> None:
    x = (normal(n) * 50).round()
    for k in (0, 1, 700, n // 4):
        assert largest(x, k).tolist() == by_sorting(x, k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_any_floating_type(dtype: torch.dtype) -> None:
    x = normal().to(dtype)
    for k in (1, 500, 8000):
        assert largest(x, k).tolist() == by_sorting(x, k)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([1, 3, 50, 1000, 20_000]), st.booleans())
def test_whatever_the_ties_are(seed: int, levels: int, k: int, shuffled: bool) -> None:
    """Few levels, in runs or shuffled: the last place is shared by many, and the lowest indices get it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels + 1, (LARGE,), generator=generator).float()
    x = x if shuffled else x.sort().values
    assert largest(x, k).tolist() == by_sorting(x, k)


def searched(monkeypatch: pytest.MonkeyPatch, x: Tensor, k: int) -> list[int]:
    """How many elements each search went through."""
    sizes: list[int] = []
    search = top_k._largest

    def watched(flat: Tensor, k: int) -> Any:
        sizes.append(flat.numel())
        return search(flat, k)

    monkeypatch.setattr(top_k, "_largest", watched)
    largest(x, k)
    return sizes


def test_a_small_part_is_searched_where_the_sample_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (size,) = searched(monkeypatch, normal(), 820)
    assert 820 <= size < 2 * 820


def test_all_are_searched_where_the_sample_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("the sample sees only large ones", "all equal"):
        assert searched(monkeypatch, HARD[kind], LARGE // 5)[-1] == LARGE


def test_the_input_is_untouched() -> None:
    x = HARD["many NaN"].clone()
    largest(x, 100)
    assert torch.equal(x.nan_to_num(7.0), HARD["many NaN"].nan_to_num(7.0))
