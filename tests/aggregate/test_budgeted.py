"""Budgeted: the best choice within the bytes, nothing lost when it changes, and what is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import SHAPES, gradients, same_leaf, specs, step
from thriftgrad import (
    DCT,
    QSGD,
    AllGather,
    AllReduce,
    Budgeted,
    Cast,
    ErrorFeedback,
    GradiVeQ,
    Huffman,
    Identity,
    Key,
    Ledger,
    Partition,
    PowerSGD,
    ScatterReduce,
    Sign,
    TensorSpec,
    TopK,
    kernels,
    parse,
    recipes,
)
from thriftgrad.aggregate import InBasis, LocalClip, LocalMomentum
from thriftgrad.aggregate.budgeted import Chosen, InUse, _allowances
from thriftgrad.aggregate.trial import local_errors, payload_bytes
from thriftgrad.core import memories
from thriftgrad.core.tree import leaves
from thriftgrad.train.state import flatten, restore

RANKS = tuple(PowerSGD(rank=rank, min_compression_rate=0) for rank in (1, 2, 4))
SPARSE = tuple(AllGather(ErrorFeedback(TopK(k=k))) for k in (1, 4, 12))
BITS = tuple(AllGather(QSGD(bits=bits)) for bits in (2, 4, 8))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(n: int, m: int, rank: int, seed: int = 0) -> Tensor:
    return random(n, rank, seed=seed) @ random(rank, m, seed=seed + 1000)


def started(method: Any, tensors: list[Tensor], workers: int) -> list[Any]:
    names = [TensorSpec.of(x, f"w{i}") for i, x in enumerate(tensors)]
    return [method.init(names) for _ in range(workers)]


def choices(state: Any) -> list[int]:
    return [entry.inner.choice for entry in state]


def table_bytes(method: Budgeted, tensors: int) -> int:
    return 8 * tensors * len(method.candidates)


# The choice


def test_every_matrix_gets_the_rank_that_it_has() -> None:
    """20 x 30 matrices of ranks 4, 1 and 2, and a budget for exactly these ranks: 4 (20 + 30) bytes each."""
    tensors = [[(1 + w) * low_rank(20, 30, rank, seed=rank) for rank in (4, 1, 2)] for w in range(3)]
    method = Budgeted(7 * 200, RANKS)
    means, states = step(method, tensors, started(method, tensors[0], 3), Key(0))
    assert method.chosen(states[1]) == {"w0": RANKS[2], "w1": RANKS[0], "w2": RANKS[1]}
    for mean, x in zip(means[2], tensors[0], strict=True):
        torch.testing.assert_close(mean, 2 * x, rtol=1e-4, atol=1e-4)  # the mean of 1, 2 and 3 times x


@pytest.mark.parametrize("budget", [110, 130, 150, 180, 200, 230])
def test_the_choice_is_the_best_of_all(budget: int) -> None:
    """Against every choice there is: errors by numpy, and bytes by the ledger of the whole call."""
    candidates = (*(AllGather(TopK(k=k)) for k in (1, 5)), AllReduce(Identity()))
    tensors = [[scale * random(n, seed=w + n) for n, scale in ((12, 1.0), (30, 4.0), (20, 0.5))] for w in range(2)]

    def error(choice: tuple[int, ...]) -> float:
        """What the k largest magnitudes leave, summed over tensors and workers."""
        squares = [[np.sort(x.double().numpy() ** 2) for x in mine] for mine in tensors]
        return float(sum(x[: -(1, 5, 99)[at]].sum() for mine in squares for x, at in zip(mine, choice, strict=True)))

    def nbytes(choice: tuple[int, ...]) -> float:
        ledger = Ledger()
        for at in set(choice):
            some = [[x for x, i in zip(mine, choice, strict=True) if i == at] for mine in tensors]
            step(candidates[at], some, started(candidates[at], some[0], 2), Key(0), ledger)
        return ledger.payload_up_bytes

    method = Budgeted(budget, candidates)
    _, states = step(method, tensors, started(method, tensors[0], 2), Key(0))
    found = tuple(choices(states[0]))
    assert nbytes(found) <= budget
    # A header of 20 bytes may have been counted once too often.
    reachable = [each for each in product(range(3), repeat=3) if nbytes(each) <= budget - 20]
    assert error(found) <= min(map(error, reachable)) * (1 + 1e-9)


def test_one_candidate_for_all_is_among_the_choices() -> None:
    """At the very bytes of 4 bits for all of some equally large tensors nothing is better."""
    tensors = [[random(40, 50, seed=i) for i in range(5)]]
    book = Ledger()
    step(BITS[1], tensors, started(BITS[1], tensors[0], 1), Key(0), book)
    method = Budgeted(int(book.payload_up_bytes), BITS)
    _, states = step(method, tensors, started(method, tensors[0], 1), Key(0))
    assert choices(states[0]) == [1] * 5


@pytest.mark.parametrize("candidates", [RANKS, BITS, SPARSE, (*BITS, RANKS[0])], ids=repr)
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4, 5]], [[4, 1], [0], [3, 2, 5]]], ids=repr)
def test_the_bytes_stay_within_the_budget_however_tensors_are_grouped(
    candidates: tuple[Any, ...], groups: list[list[int]]
) -> None:
    sizes = np.array([[payload_bytes(each, spec).alone for each in candidates] for spec in specs()])
    for share in (0.0, 0.3, 0.7):
        budget = int(sizes.min(1).sum() + share * (sizes.max(1).sum() - sizes.min(1).sum()))
        method = Budgeted(budget, candidates, every=2)
        states = [list(method.init(specs())) for _ in range(2)]
        for t in range(3):
            book = Ledger()
            for group in groups:
                some = [tuple(mine[i] for i in group) for mine in states]
                x = [[mine[i] for i in group] for mine in gradients(2, t)]
                _, after = step(method, x, some, Key(t), book)
                for mine, new in zip(states, after, strict=True):
                    for i, each in zip(group, new, strict=True):
                        mine[i] = each
            measuring = table_bytes(method, 6) if t % 2 == 0 else 0
            assert book.payload_up_bytes <= budget + measuring
        assert all(choices(mine) == choices(states[0]) for mine in states)


def test_a_call_is_worth_its_bytes() -> None:
    """Half of what there is to spend is spent on something."""
    method = Budgeted(700, RANKS)
    book = Ledger()
    step(method, gradients(2), [method.init(specs()) for _ in range(2)], Key(0), book)
    assert 650 <= book.payload_up_bytes - table_bytes(method, 6) <= 700


def test_without_gradients_the_cheapest() -> None:
    method = Budgeted(700, RANKS)
    zeros = [[torch.zeros(shape) for shape in SHAPES.values()]]
    _, states = step(method, zeros, [method.init(specs())], Key(0))
    assert choices(states[0]) == [0] * 6


def test_it_is_measured_at_the_first_step_and_every_so_many_steps() -> None:
    method, states = Budgeted(300, BITS, every=3), [Budgeted(300, BITS, every=3).init(specs()) for _ in range(2)]
    measured = []
    for t in range(8):
        book = Ledger()
        _, states = step(method, gradients(2, t), states, Key(t), book)
        measured.append(book.requests["AllReduce"])
    assert measured == [1, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("budget", range(250, 429, 16))
def test_a_call_that_is_split_stays_within_the_budget(budget: int) -> None:
    """As DDP does after the first step: a header that was counted once for the call now comes in each of two."""
    method = Budgeted(budget, (*BITS, SPARSE[1]))
    states = [list(method.init(specs())) for _ in range(2)]
    for t, groups in enumerate([[range(6)], [range(3), range(3, 6)], [range(3), range(3, 6)]]):
        book = Ledger()
        for group in groups:
            x = [[mine[i] for i in group] for mine in gradients(2, t)]
            _, after = step(method, x, [tuple(mine[i] for i in group) for mine in states], Key(t), book)
            for mine, new in zip(states, after, strict=True):
                mine[group.start : group.stop] = new
        assert choices(states[0]) == choices(states[1])
        measured = table_bytes(method, 6) if t < 2 else 0
        assert book.payload_up_bytes <= budget + measured
        assert t < 2 or not book.requests["AllReduce"]


def test_a_call_in_another_order_is_not_measured_again() -> None:
    method = Budgeted(300, BITS)
    _, states = step(method, gradients(2), [method.init(specs()) for _ in range(2)], Key(0))
    book = Ledger()
    turned = [mine[::-1] for mine in gradients(2, 1)]
    step(method, turned, [mine[::-1] for mine in states], Key(1), book)
    assert not book.requests["AllReduce"]


def test_a_tensor_that_was_not_used_when_others_chose_does_not_break_the_budget() -> None:
    """It keeps the dear candidate of old, while the others have taken what it was to give up."""
    tensors = [[low_rank(20, 30, 4), low_rank(20, 30, 1)]]
    method = Budgeted(5 * 200, RANKS, every=1)
    _, states = step(method, tensors, started(method, tensors[0], 1), Key(0))
    assert choices(states[0]) == [2, 0]
    unused = states[0][0]
    tensors = [[torch.zeros(20, 30), low_rank(20, 30, 4)]]
    _, states = step(method, tensors, states, Key(1))
    assert choices(states[0]) == [0, 2]
    seldom = Budgeted(5 * 200, RANKS, every=100)
    book = Ledger()
    _, states = step(seldom, tensors, [(unused, states[0][1])], Key(2), book)
    assert choices(states[0]) == [0, 2]
    assert book.payload_up_bytes <= 5 * 200 + table_bytes(method, 2)


# What is owed


@pytest.mark.parametrize(("candidates", "atol"), [(SPARSE, 1e-12), (RANKS, 1e-5), ((*SPARSE, *RANKS), 1e-5)], ids=repr)
def test_nothing_is_lost_when_the_choice_changes(candidates: tuple[Any, ...], atol: float) -> None:
    """In float64, inputs less estimates are the mean of the memories, while the tensors take turns at being large."""
    names = [TensorSpec((6, 5), torch.float64, name=f"w{i}") for i in range(3)]
    least = sum(min(payload_bytes(each, spec).alone for each in candidates) for spec in names)
    method = Budgeted(least + 110, candidates, every=2)
    states, owed, seen = [method.init(names) for _ in range(3)], torch.zeros(3, 6, 5, dtype=torch.float64), []
    for t in range(12):
        scale = [10.0 if t // 2 % 3 == i else 0.1 for i in range(3)]
        tensors = [[s * random(6, 5, seed=9 * t + 3 * w + i).double() for i, s in enumerate(scale)] for w in range(3)]
        means, states = step(method, tensors, states, Key(t))
        owed += torch.stack([torch.stack(each) for each in tensors]).mean(0) - torch.stack(means[0])
        seen.append(choices(states[0]))
        for i in range(3):
            kept = torch.stack([sum(memories(mine[i]), torch.zeros(6, 5)).view(6, 5) for mine in states]).mean(0)
            torch.testing.assert_close(owed[i], kept.double(), rtol=0, atol=atol)
    assert sum(one != other for one, other in pairwise(seen)) >= 2


def test_a_candidate_that_stays_keeps_its_state() -> None:
    """Of equal choices at every step, the trajectory of the candidate alone."""
    tensors = [[low_rank(20, 30, 1), low_rank(20, 30, 4)]]
    method = Budgeted(5 * 200, RANKS, every=1)
    states = started(method, tensors[0], 1)
    alone = [RANKS[2].init([states[0][1].spec])]
    for t in range(4):
        noisy = [[x + 0.01 * random(20, 30, seed=t) for x in tensors[0]]]
        means, states = step(method, noisy, states, Key(t))
        expected, alone = step(RANKS[2], [noisy[0][1:]], alone, Key(t))
        assert choices(states[0]) == [0, 2]
        assert torch.equal(means[0][1], expected[0][0])
        assert torch.equal(states[0][1].inner.inner.factor, alone[0][0].inner.factor)


def test_a_non_finite_error_keeps_the_choice(caplog: pytest.LogCaptureFixture) -> None:
    """A float64 beyond float32 in a tensor whose candidates compute in that; nobody solves for NaN."""
    method = Budgeted(300, BITS, every=1)
    states = [method.init(specs(torch.float64)) for _ in range(2)]
    _, states = step(method, gradients(2, 0, torch.float64), states, Key(0))
    assert len(set(choices(states[0]))) > 1
    tensors = gradients(2, 1, torch.float64)
    tensors[1][0][0, 0] = 1e300
    with caplog.at_level(logging.INFO, logger="thriftgrad"):
        _, after = step(method, tensors, states, Key(1))
    assert after == states
    assert not caplog.records


# What a trial finds


@pytest.mark.parametrize(
    ("candidate", "shape", "alone", "shared"),
    [
        (RANKS[1], (8, 12), 4 * 2 * (8 + 12), 0),
        (RANKS[1], (7,), 4 * 7, 0),
        (PowerSGD(rank=2), (8, 12), 4 * 2 * (8 + 12), 0),
        (PowerSGD(rank=4), (8, 12), 4 * 8 * 12, 0),  # would not shrink
        (PowerSGD(rank=2, alternating=True, min_compression_rate=0), (8, 12), 4 * 2 * 12, 0),
        (AllReduce(Cast("bf16")), (3, 4, 5), 2 * 60, 0),
        (BITS[1], (1000,), 20 + 500 + 4 * 2, 20),  # a header, half a byte each, a scale for each 512
        (AllGather(TopK(k=3)), (256,), 20 + 3 * (4 + 1), 20),
        (AllGather(Sign(bucket=8)), (64,), 20 + 8 + 4 * 8, 20),
        (LocalClip(AllGather(TopK(k=3)), 1.0), (256,), 20 + 3 * (4 + 1), 20),
    ],
    ids=repr,
)
def test_bytes_in_closed_form(candidate: Any, shape: tuple[int, ...], alone: int, shared: int) -> None:
    assert payload_bytes(candidate, TensorSpec(shape)) == (alone, shared)


def test_errors_in_closed_form() -> None:
    """Top-k from a memory that is empty; PowerSGD from the factor of a first step, by numpy."""
    x, spec, key = random(9, 7), TensorSpec((9, 7), name="w"), Key(5)
    squares = np.sort(x.double().numpy().reshape(-1) ** 2)
    found = local_errors(SPARSE[1], [x, 2 * x], [spec, TensorSpec((9, 7), name="v")], key)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([squares[:-4].sum(), 4 * squares[:-4].sum()], rel=1e-6)
    m = x.double().numpy()
    q = kernels.normal(7 * 2, key.fold(0).fold("PowerSGD", "w").seed).view(7, 2).double().numpy()
    for _ in range(2):
        basis, _ = np.linalg.qr(m @ q)
        q = m.T @ basis
    (error,) = local_errors(RANKS[1], [x], [spec], key).tolist()
    assert error == pytest.approx(((m - basis @ q.T) ** 2).sum(), rel=1e-5)


@given(
    st.lists(st.lists(st.integers(1, 10**12), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 10**13)
)
def test_allowances_add_up_to_the_budget_and_pay_for_the_cheapest(rows: list[list[int]], more: int) -> None:
    sizes = np.array(rows)
    least, most = int(sizes.min(1).sum()), int(sizes.max(1).sum())
    found = _allowances(sizes, least + more)
    assert sum(found) == min(least + more, most)
    assert all(low <= each <= high for each, low, high in zip(found, sizes.min(1), sizes.max(1), strict=True))


# To be seen, and to be saved


def test_the_choice_is_told_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    tensors = [[low_rank(20, 30, rank, seed=rank) for rank in (2, 1)] for _ in range(2)]
    method = Budgeted(3 * 200, RANKS[:2], every=1)
    states = started(method, tensors[0], 2)
    assert method.chosen(states[0]) == {"w0": RANKS[0], "w1": RANKS[0]}
    with caplog.at_level(logging.INFO, logger="thriftgrad"):
        for t in range(3):
            _, states = step(method, tensors, states, Key(t))
    assert [record.getMessage() for record in caplog.records] == [
        f"Budgeted: the choice within 600 bytes is now w0: {RANKS[1]!r}, w1: {RANKS[0]!r}"
    ]


def test_what_travels_whole_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    tensors = [[low_rank(20, 30, 2), random(7)]]
    method = Budgeted(428, RANKS)
    with caplog.at_level(logging.INFO, logger="thriftgrad"):
        step(method, tensors, started(method, tensors[0], 1), Key(0))
    assert [record.getMessage() for record in caplog.records] == [
        f"Budgeted: the choice within 428 bytes is now w0: {RANKS[1]!r}"
    ]


@pytest.mark.parametrize("candidates", [RANKS, SPARSE, (BITS[2], SPARSE[0], RANKS[0])], ids=repr)
def test_a_state_after_a_change_comes_back(candidates: tuple[Any, ...]) -> None:
    method = Budgeted(450 if candidates is RANKS else 250, candidates, every=2)
    states = [method.init(specs()) for _ in range(2)]
    for t in range(3):
        _, states = step(method, gradients(2, t), states, Key(t))
    assert len(set(choices(states[0]))) > 1
    again = [
        tuple(restore(method, each.spec, rank, 2, "x", flatten(each.inner, "x")) for each in mine)
        for rank, mine in enumerate(states)
    ]
    for t in (3, 4):
        one, states = step(method, gradients(2, t), states, Key(t))
        two, again = step(method, gradients(2, t), again, Key(t))
        assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert all(same_leaf(a, b) for a, b in zip(leaves(tuple(states)), leaves(tuple(again)), strict=True))


def test_a_damaged_state_is_refused() -> None:
    method = Budgeted(900, RANKS)
    saved = flatten(method.init(specs())[0].inner, "x")
    memory = {"x/by_candidate/0/inner/memory": torch.zeros(3)}
    elsewhere = {path.replace("by_candidate/0", "by_candidate/3"): leaf for path, leaf in saved.items()}
    twice = {path.replace("by_candidate/0", "by_candidate/1"): leaf for path, leaf in saved.items()}
    for damaged in (saved | memory, elsewhere, saved | twice):
        with pytest.raises(ValueError, match=r"what was saved for parameter 'conv\.weight' is no state of Budgeted"):
            restore(method, specs()[0], 0, 2, "x", damaged)


@pytest.mark.parametrize(
    "candidates",
    [
        (PowerSGD(rank=1, warm_start=False), GradiVeQ(slice_elements=16, components=2, compressed_steps=3)),
        (GradiVeQ(slice_elements=16, components=2, compressed_steps=3), PowerSGD(rank=1, warm_start=False)),
        (AllGather(ErrorFeedback(TopK(k=4))), PowerSGD(rank=1)),
        (AllGather(QSGD(bits=8)), AllReduce(Cast("bf16"))),
    ],
    ids=repr,
)
def test_a_checkpoint_names_the_candidate(candidates: tuple[Any, ...]) -> None:
    """Also where the state of one candidate would fit another, and where a candidate has none."""
    spec = TensorSpec((20, 30), name="w")
    most = max(payload_bytes(each, spec).alone for each in candidates)
    method = Budgeted(most, candidates)
    for choice, candidate in enumerate(candidates):
        (inner,) = candidate.init([spec])
        for t in range(3):
            _, ((inner,),) = step(candidate, [[random(20, 30, seed=t)]], [(inner,)], Key(t))
            state = Chosen(most, tuple(InUse(t + 1, inner.inner) if i == choice else None for i in range(2)))
            back = restore(method, spec, 0, 1, "x", flatten(state, "x")).inner
            assert (back.choice, back.step, type(back.inner)) == (choice, t + 1, type(inner.inner))
            assert all(same_leaf(a, b) for a, b in zip(leaves(back), leaves(state), strict=True))


def test_forms_are_those_of_the_candidates() -> None:
    method = Budgeted(300, (BITS[0], SPARSE[0], RANKS[0]))
    forms = list(method.forms(TensorSpec((8, 12), name="w")))
    assert [form.choice for form in forms] == [0, 1, 2]
    assert [len(list(memories(form))) for form in forms] == [0, 1, 1]


def test_what_every_candidate_leaves_alone() -> None:
    method = Budgeted(800, (PowerSGD(rank=1), PowerSGD(rank=2)))
    assert method.uncompressed(specs()) == ("conv.bias", "scale", "norm")
    assert Budgeted(800, (*BITS, *RANKS)).uncompressed(specs()) == ()


def test_it_is_printed_and_parsed() -> None:
    text = "Budgeted(bytes_per_step=20000, candidates=(PowerSGD(rank=1), PowerSGD(rank=4)))"
    assert parse(text) == Budgeted(20000, (PowerSGD(rank=1), PowerSGD(rank=4)))
    assert repr(parse(text)) == text
    assert Budgeted(300, [*BITS]) == Budgeted(300, BITS)  # type: ignore[arg-type]  # a list becomes a tuple


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Budgeted(0, RANKS), ValueError, "Budgeted: bytes_per_step must be at least 1, got 0."),
        (lambda: Budgeted(2e4, RANKS), TypeError, "Budgeted: bytes_per_step must be an integer, got 20000.0."),
        (lambda: Budgeted(9, RANKS, every=0), ValueError, "Budgeted: every must be at least 1, got 0."),
        (lambda: Budgeted(9, RANKS, every=0.5), TypeError, "Budgeted: every must be an integer, got 0.5."),
        (lambda: Budgeted(9, RANKS[0]), TypeError, "candidates must be a tuple such as (PowerSGD(rank=1), PowerSGD"),
        (lambda: Budgeted(9, (RANKS[0], Sign())), TypeError, "must be an aggregator itself, such as PowerSGD(rank=1)"),
        (
            lambda: Budgeted(9, (RANKS[0], recipes.power_sgd(rank=4))),
            TypeError,
            f"got {recipes.power_sgd(rank=4)!r}; of a recipe's method write its aggregator.",
        ),
        (lambda: Budgeted(9, RANKS[:1]), ValueError, "candidates must be two or more and all different, got (PowerSGD"),
        (lambda: Budgeted(9, (RANKS[0], RANKS[0])), ValueError, "two or more and all different"),
        (lambda: Budgeted(9, ()), ValueError, "two or more and all different, got (); use the aggregator itself"),
        (
            lambda: Budgeted(327, RANKS).init(specs()),
            ValueError,
            "Budgeted: bytes_per_step=327 is below the 328 bytes that the cheapest candidates take for all 6 tensors "
            "together; give at least that, or a cheaper candidate.",
        ),
        (
            lambda: Budgeted(400, (BITS[0], AllGather(QSGD(bits=8) >> Huffman()))).init(specs()),
            ValueError,
            "Budgeted: the bytes of AllGather(compressor=QSGD(bits=8) >> Huffman()) depend on the data or on the "
            "number of workers, so no budget holds; take AllReduce, AllGather or PowerSGD, without a coder",
        ),
        (
            lambda: Budgeted(400, (BITS[0], ScatterReduce(Sign(), Sign()))).init(specs()),
            ValueError,
            "the bytes of ScatterReduce(up=Sign(), down=Sign()) depend on the data or on the number of workers",
        ),
        (
            lambda: Budgeted(400, (BITS[0], InBasis(DCT(chunk=4), SPARSE[0]))).init(specs()),
            ValueError,
            "what InBasis(basis=DCT(chunk=4), aggregator=AllGather(compressor=ErrorFeedback(compressor=TopK(k=1)))) "
            "remembers is not its tensor less what it sent, so no other candidate could go on from there; leave out",
        ),
        (
            lambda: Budgeted(400, (BITS[0], LocalMomentum(SPARSE[0]))).init(specs()),
            ValueError,
            "remembers is not its tensor less what it sent",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        make()


@pytest.mark.parametrize(
    "around",
    [
        lambda inner: Partition({"rest": inner}),
        LocalMomentum,
        lambda inner: LocalClip(inner, 1.0),
        lambda inner: InBasis(Identity(), inner),
        lambda inner: Budgeted(900, (inner, AllReduce(Identity()))),
    ],
    ids=["Partition", "LocalMomentum", "LocalClip", "InBasis", "Budgeted"],
)
def test_nothing_stands_around_it(around: Callable[[Any], Any]) -> None:
    words = (
        "Budgeted: the budget is divided among all tensors at once, so nothing can stand around "
        f"{Budgeted(250, BITS)!r}; put what should stand around it around its candidates."
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        around(Budgeted(250, BITS)).init(specs())


def test_a_budget_without_effect_is_told() -> None:
    words = (
        "Budgeted: bytes_per_step=1036 pays for the dearest candidate of every tensor, 1036 bytes together, so it "
        "has no effect; lower it."
    )
    with pytest.warns(UserWarning, match=re.escape(words)):
        Budgeted(1036, RANKS).init(specs())
    Budgeted(1035, RANKS).init(specs())
    assert Budgeted(9, RANKS).init([]) == ()


def test_the_warnings_of_candidates_are_passed_on() -> None:
    method = Budgeted(900, (PowerSGD(rank=30), *RANKS))
    with pytest.warns(UserWarning, match=re.escape("PowerSGD(rank=30) compresses none of the 6 tensors")):
        method.init(specs())


def test_candidates_by_name_are_counted_by_name() -> None:
    """Equal shapes, of which one travels whole by its name."""
    by_name = Partition({"name:w0": AllReduce(Identity()), "rest": AllReduce(Cast("bf16"))})
    method = Budgeted(200, (by_name, AllGather(TopK(k=1))))
    states = started(method, [random(40), random(40)], 1)
    assert [payload_bytes(by_name, entry.spec).alone for entry in states[0]] == [160, 80]


def test_the_state_is_what_the_handle_can_save() -> None:
    state = Budgeted(900, RANKS).init(specs())[0].inner
    assert isinstance(state, Chosen)
    at = "x/by_candidate/0"
    assert set(flatten(state, "x")) == {"x/allowance_bytes", f"{at}/step", f"{at}/inner/step", f"{at}/inner/memory"}
    assert all(isinstance(leaf, Tensor | int) for leaf in flatten(state, "x").values())
