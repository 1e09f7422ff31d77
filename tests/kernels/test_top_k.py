"""The k largest magnitudes, exactly: on large tensors too, where a sample guesses and may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thriftgrad import ChunkedTopK, ErrorFeedback, Key, TensorSpec, TopK, kernels
from thriftgrad.core import Compressor
from thriftgrad.kernels import sparse
from thriftgrad.kernels.cpu import threads, top_k
from thriftgrad.kernels.sparse import SAMPLE

LARGE = 5 * SAMPLE + 77
STRIDE = LARGE // SAMPLE
each = pytest.mark.parametrize("kernel", [sparse, top_k], ids=["reference", "compiled"])


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


def misleading_the_compiled(sampled: float, others: float) -> Tensor:
    """The same for the sample of the compiled kernel, whose places are hashed."""
    size = LARGE // top_k.SPARSEST
    i = np.arange(size, dtype=np.uint64)
    step = np.uint64(LARGE // size)
    places = torch.from_numpy((i * step + (i * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % step).astype(np.int64))
    x = normal().sign() * others * (1 + torch.arange(LARGE) / LARGE)
    x[places] = sampled * normal()[places]
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
    "the compiled sample sees only large ones": misleading_the_compiled(1e3, 1.0),
    "the compiled sample sees only small ones": misleading_the_compiled(1e-6, 1.0),
    "the compiled sample sees only zeros": misleading_the_compiled(0.0, 1.0),
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


@each
@pytest.mark.parametrize("kind", HARD)
def test_the_largest_are_those_that_sorting_finds(kernel: ModuleType, kind: str) -> None:
    x, ranked = HARD[kind], order(HARD[kind])
    for k in (0, 1, 2, 82, 820, LARGE // 10, LARGE // 4, LARGE // 4 + 1, LARGE // 2, LARGE - 1, LARGE):
        assert np.array_equal(kernel.largest(x, k).numpy(), np.sort(ranked[:k]))


@each
@pytest.mark.parametrize("n", [4 * SAMPLE - 1, 4 * SAMPLE, 4 * SAMPLE + 1, 9 * SAMPLE - 1])
def test_around_the_size_from_which_there_is_a_sample(kernel: ModuleType, n: int) -> None:
    x = (normal(n) * 50).round()
    for k in (0, 1, 700, n // 4):
        assert kernel.largest(x, k).tolist() == by_sorting(x, k)


@each
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 129, 1000, top_k.FEW - 1, top_k.FEW, top_k.FEW + 65])
def test_small_tensors(kernel: ModuleType, n: int) -> None:
    x = (normal(n) * 20).round()
    for k in {0, min(1, n), n // 5, n // 2, n}:
        assert kernel.largest(x, k).tolist() == by_sorting(x, k)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_any_floating_type(kernel: ModuleType, dtype: torch.dtype) -> None:
    x = normal().to(dtype)
    for k in (1, 500, 8000):
        assert kernel.largest(x, k).tolist() == by_sorting(x, k)


@each
@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([1, 3, 50, 1000, 20_000]), st.booleans())
def test_whatever_the_ties_are(kernel: ModuleType, seed: int, levels: int, k: int, shuffled: bool) -> None:
    """Few levels, in runs or shuffled: the last place is shared by many, and the lowest indices get it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels + 1, (LARGE,), generator=generator).float()
    x = x if shuffled else x.sort().values
    assert kernel.largest(x, k).tolist() == by_sorting(x, k)


@each
def test_elements_need_not_lie_side_by_side(kernel: ModuleType) -> None:
    x = normal(40_000)[::3]
    assert kernel.largest(x, 100).tolist() == by_sorting(x, 100)


@pytest.fixture
def sliced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three threads, also for short vectors."""
    monkeypatch.setattr(threads, "SMALLEST_SLICE", 1000)
    threads.set_threads(3)
    yield
    threads.set_threads(None)


def test_slices_are_one_vector(sliced: None) -> None:
    for kind in HARD:
        x, ranked = HARD[kind], order(HARD[kind])
        for k in (82, LARGE // 10):
            assert np.array_equal(top_k.largest(x, k).numpy(), np.sort(ranked[:k])), kind
            memory = normal(seed=1)
            for ours, theirs in zip(
                top_k.choose_largest(x, k, memory, 0.9), sparse.choose_largest(x, k, memory, 0.9), strict=True
            ):
                assert torch.equal(bits(ours), bits(theirs)), kind


def bits(x: Tensor) -> Tensor:
    """With NaN comparable, and both zeros different."""
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32) if x.dtype == torch.float32 else x


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("n", [77, LARGE])
def test_what_is_chosen_and_what_is_left_over(kind: str, n: int) -> None:
    """values = owed there, rest = owed - what the values decompress to, bit for bit."""
    x, memory, k, decay = HARD[kind][:n].clone(), normal(n, seed=1), n // 11, 0.7
    owed = x + decay * memory
    for kernel in (sparse, top_k):
        before = x.clone(), memory.clone()
        chosen = kernel.choose_largest(x, k, memory, decay)
        assert torch.equal(bits(x), bits(before[0]))
        assert torch.equal(memory, before[1])
        assert chosen.indices.tolist() == by_sorting(owed, k)
        assert torch.equal(bits(chosen.values), bits(owed[chosen.indices]))
        sent = torch.zeros(n).index_copy_(0, chosen.indices, chosen.values)
        assert torch.equal(bits(chosen.rest), bits(owed - sent))
        alone = kernel.choose_largest(x, k)
        assert torch.equal(bits(alone.values), bits(x[kernel.largest(x, k)]))
        assert alone.rest is None
        assert torch.equal(bits(kernel.owed(x, memory, decay)), bits(owed))


@each
def test_of_other_types_memory_included(kernel: ModuleType) -> None:
    x, memory = normal(500).double(), normal(500, seed=1).double()
    chosen = kernel.choose_largest(x, 7, memory, 0.5)
    assert chosen.values.dtype == chosen.rest.dtype == torch.float64
    assert torch.equal(chosen.rest, (x + 0.5 * memory).index_fill_(0, chosen.indices, 0.0))
    assert kernel.owed(x, memory, 0.5).equal(x + 0.5 * memory)


@each
def test_adding_at_few_places(kernel: ModuleType) -> None:
    indices, values = torch.tensor([1, 5, 5, 9]), torch.tensor([1.0, 2.0, 3.0, -4.0])
    for dtype in (torch.float32, torch.float64):
        total = torch.ones(10, dtype=dtype)
        kernel.add_at(total, indices, values.to(torch.bfloat16))
        assert total.tolist() == [1, 2, 1, 1, 1, 6, 1, 1, 1, -3]


@each
@pytest.mark.parametrize("index", [10, -1, 1 << 62])
def test_a_place_that_is_none_is_refused_and_nothing_is_added(kernel: ModuleType, index: int) -> None:
    total = torch.zeros(10)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        kernel.add_at(total, torch.tensor([index]), torch.ones(1))
    assert not total.any()


@each
@pytest.mark.parametrize("width", [1, 7, 64, 1000, 4096, 5000])
def test_the_largest_of_each_row(kernel: ModuleType, width: int) -> None:
    for kind in ("gaussian", "ties", "all equal", "few that are not zero", "ascending", "many NaN", "huge", "denormal"):
        rows = HARD[kind][: min(40, LARGE // width) * width].view(-1, width)[-15:]
        for k in {0, 1, width // 50, width // 4, width}:
            expected = [by_sorting(row, k) for row in rows]
            assert kernel.largest_of_rows(rows, k).view(len(rows), k).tolist() == expected


def test_rows_in_slices(sliced: None) -> None:
    rows = HARD["ties"][: LARGE // 300 * 300].view(-1, 300)
    assert torch.equal(top_k.largest_of_rows(rows, 7), sparse.largest_of_rows(rows, 7))


@pytest.mark.parametrize("inner", [TopK(fraction=0.02), ChunkedTopK(k=3, chunk=100)], ids=repr)
def test_the_compressor_adds_and_keeps_the_same_by_all_backends(inner: Compressor) -> None:
    """Two steps of error feedback and a sum of estimates, with the kernels and without."""
    found = []
    for name in ("reference", "cpu"):
        kernels.use(name)
        compressor, spec = ErrorFeedback(inner, decay=0.9), TensorSpec((LARGE,))
        state, total = compressor.init(spec), torch.zeros(LARGE)
        for step in range(2):
            payload, state = compressor.compress(normal(seed=step), state, Key(step))
            compressor.add_to(total, payload)
            sent = compressor.decompress(payload)
            assert torch.equal(sent[sent != 0], payload.carrier)
        found.append((total, state.memory))
    kernels.use(None)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def searched(monkeypatch: pytest.MonkeyPatch, x: Tensor, k: int) -> list[int]:
    """How many elements each search went through."""
    sizes: list[int] = []
    search = sparse._largest

    def watched(flat: Tensor, k: int) -> Any:
        sizes.append(flat.numel())
        return search(flat, k)

    monkeypatch.setattr(sparse, "_largest", watched)
    sparse.largest(x, k)
    return sizes


def test_a_small_part_is_searched_where_the_sample_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (size,) = searched(monkeypatch, normal(), 820)
    assert 820 <= size < 2 * 820


def test_all_are_searched_where_the_sample_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("the sample sees only large ones", "all equal"):
        assert searched(monkeypatch, HARD[kind], LARGE // 5)[-1] == LARGE


@each
def test_the_input_is_untouched(kernel: ModuleType) -> None:
    x = HARD["many NaN"].clone()
    kernel.largest(x, 100)
    assert torch.equal(x.nan_to_num(7.0), HARD["many NaN"].nan_to_num(7.0))
