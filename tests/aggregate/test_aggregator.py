"""What all aggregators check before they start, and the single ones' own rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samples import estimates, step
from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    Cast,
    ErrorFeedback,
    Identity,
    Key,
    ParameterServer,
    Partition,
    PayloadError,
    PowerSGD,
    RandomK,
    ScatterReduce,
    Shrink,
    Sign,
    TensorSpec,
    TopK,
    recipes,
    simulate,
)
from thriftgrad.aggregate import LocalMomentum
from thriftgrad.comm import CollectiveMismatchError
from thriftgrad.compress import Vote

METHODS = [AllGather(Sign()), PowerSGD(), LocalMomentum(AllReduce(Identity())), ScatterReduce(Sign(), Sign())]
SPEC = TensorSpec((4,), name="w")
EVERY = pytest.mark.parametrize("method", METHODS, ids=repr)


@EVERY
@pytest.mark.parametrize(
    ("specs", "error", "words"),
    [
        ([TensorSpec((3, 0), name="w")], ValueError, r"tensor 'w' of shape \(3, 0\) is empty; leave it out"),
        ([TensorSpec((3,), torch.int64)], TypeError, "tensor '0' holds torch.int64; only floating-point tensors"),
        (
            [SPEC, TensorSpec((3,), name="w")],
            ValueError,
            "two tensors are named 'w'; give each tensor a name of its own",
        ),
        ([SPEC, TensorSpec((3,)), TensorSpec((3,), name="1")], ValueError, "two tensors are named '1'"),
    ],
)
@pytest.mark.filterwarnings("ignore:PowerSGD.. compresses none")
def test_init_refuses(method: Any, specs: list[TensorSpec], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        method.init(specs)


@EVERY
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "got 0 tensors for the state of 1; call init for these ones"),
        ([torch.ones(4), torch.ones(4)], "got 2 tensors for the state of 1"),
        (
            [torch.ones(2, 2)],
            r"tensor 'w' is torch.float32 of shape \(2, 2\), its state was made for torch.float32 of shape \(4,\)",
        ),
        (
            [torch.ones(4).double()],
            r"tensor 'w' is torch.float64 of shape \(4,\), its state was made for torch.float32",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:PowerSGD.. compresses none")
def test_aggregate_refuses_other_tensors(method: Any, tensors: list[torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate([method.aggregate(tensors, method.init([SPEC]), Key(0))])


@pytest.mark.parametrize(
    "compressor",
    [TopK(k=1), QSGD(bits=4), Sign(), ErrorFeedback(TopK(k=1)), Shrink(QSGD(bits=4)), RandomK(k=2) >> Sign()],
    ids=repr,
)
def test_an_all_reduce_is_for_linear_compressors(compressor: Any) -> None:
    with pytest.raises(TypeError, match="AllReduce needs a linear compressor, and ") as caught:
        AllReduce(compressor)
    assert f"Use AllGather({compressor!r}) or ScatterReduce({compressor!r}, {compressor!r})" in str(caught.value)


def test_what_an_all_reduce_would_make_of_top_k() -> None:
    """Why it is refused: the sum of two workers' carriers is the sum of values from different places."""
    xs = [torch.tensor([9.0, 0, 0]), torch.tensor([0.0, 0, 5])]
    payloads = [TopK(k=1).compress(x, None, Key(0))[0] for x in xs]
    assert payloads[0].side.indices.tolist() != payloads[1].side.indices.tolist()


def test_the_state_of_a_scatter_reduce_is_for_one_number_of_workers() -> None:
    method = ScatterReduce(ErrorFeedback(Sign()), Sign())
    _, states = step(method, [[torch.ones(4)]] * 3, [method.init([SPEC])] * 3, Key(0))
    words = "ScatterReduce: the state was made for 3 workers and there are 2; call init again"
    with pytest.raises(ValueError, match=words):
        step(method, [[torch.ones(4)]] * 2, states[:2], Key(1))


def test_workers_with_different_methods_do_not_hang() -> None:
    one, two = AllGather(Sign()), AllReduce(Identity())
    with pytest.raises(CollectiveMismatchError, match=r"AllGatherRequest.*AllReduceRequest"):
        simulate([each.aggregate([torch.ones(4)], each.init([SPEC]), Key(0)) for each in (one, two)])


def test_workers_with_different_compressors_of_one_size_are_found_out() -> None:
    one, two = AllGather(QSGD(bits=4)), AllGather(QSGD(bits=4, norm="linf"))
    with pytest.raises(
        PayloadError, match=r"packed by another compressor .* than the expected QSGD\(bits=4\) of \[4\]"
    ):
        simulate([each.aggregate([torch.ones(4)], each.init([SPEC]), Key(0)) for each in (one, two)])


@pytest.mark.parametrize("world", [2, 5])
def test_a_tensor_shorter_than_the_number_of_workers(world: int) -> None:
    """Some shards are empty."""
    for method in (ScatterReduce(Identity(), Identity()), ScatterReduce(TopK(k=3), QSGD(bits=8, bucket=1))):
        tensors = [[torch.tensor([float(rank)]), torch.full((2, 2), rank + 1.0)] for rank in range(world)]
        means = estimates(method, tensors)
        for mine in means:
            assert mine[0].item() == pytest.approx((world - 1) / 2)
            torch.testing.assert_close(mine[1], torch.full((2, 2), (world + 1) / 2))


def test_the_majority_decides() -> None:
    votes = [torch.tensor([1.0, 1, -3, 0]), torch.tensor([-5.0, 2, -1, 0]), torch.tensor([0.5, -1, 9, -1])]
    assert estimates(recipes.sign_sgd().aggregator, [[x] for x in votes])[0][0].tolist() == [1.0, 1.0, -1.0, 1.0]
    tied = estimates(
        ParameterServer(Sign(scaled=False), Vote()), [[torch.tensor([1.0, -2])], [torch.tensor([-9.0, -1])]]
    )
    assert tied[1][0].tolist() == [0.0, -1.0]


def test_momentum_is_each_workers_own_average() -> None:
    method = LocalMomentum(AllReduce(Identity()), beta=0.75)
    states, averages = [method.init([SPEC])] * 2, [torch.zeros(4), torch.zeros(4)]
    for i in range(3):
        xs = [torch.randn(4, generator=torch.Generator().manual_seed(2 * i + w)) for w in range(2)]
        averages = [0.75 * m + 0.25 * x for m, x in zip(averages, xs, strict=True)]
        means, states = step(method, [[x] for x in xs], states, Key(i))
        torch.testing.assert_close(means[0][0], (averages[0] + averages[1]) / 2)
        torch.testing.assert_close(states[1][0].inner.average, averages[1])


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_momentum_refuses(beta: float) -> None:
    with pytest.raises(ValueError, match=rf"LocalMomentum: beta must lie in \[0, 1\), got {beta}"):
        LocalMomentum(AllReduce(Identity()), beta=beta)


def test_an_average_beyond_float32_is_seen_although_its_coordinate_is_not_drawn() -> None:
    method = LocalMomentum(AllGather(RandomK(k=1)), beta=0.5)
    x = torch.ones(100)
    x[7] = 3e38
    _, states = step(method, [[x]], [method.init([TensorSpec((100,))])], Key(0))
    for i in range(5):
        means, after = step(method, [[-x]], states, Key(i))
        assert not means[0][0].isfinite().all()
        assert after == states


def test_server_and_shard_owners_pass_a_nan_on_in_full() -> None:
    """A second hop of few coordinates must not lose it."""
    for method in (ScatterReduce(TopK(k=1), RandomK(k=1)), ParameterServer(TopK(k=1), RandomK(k=1))):
        for i in range(4):
            tensors = [[torch.full((50,), torch.nan)], [torch.ones(50)]]
            assert not estimates(method, tensors, Key(i))[1][0].isfinite().all()


def test_the_rules_of_a_partition() -> None:
    method = Partition(
        {
            "name:head.*": AllReduce(Identity()),
            "numel>=100": AllGather(TopK(k=1)),
            "matrix": PowerSGD(rank=1, min_compression_rate=0),
            "numel<3": AllReduce(Cast("bf16")),
            "vector": AllGather(Sign()),
            "rest": AllReduce(Identity()),
        }
    )
    shapes = {"head.weight": (20, 20), "big": (100,), "small": (9, 11), "tiny": (2,), "bias": (50,)}
    specs = [TensorSpec(shape, name=name) for name, shape in shapes.items()]
    with pytest.warns(UserWarning, match="Partition: the rule 'rest' fits no tensor that is left, so it has no effect"):
        states = [method.init(specs) for _ in range(2)]
    tensors = [[torch.randn(shape) for shape in shapes.values()] for _ in range(2)]
    means, _ = step(method, tensors, states, Key(3))
    routed = dict(zip(shapes, (0, 1, 2, 3, 4), strict=True))
    rules = [aggregator for _, aggregator in method.rules]
    for at, (name, rule) in enumerate(routed.items()):
        alone, spec = rules[rule], specs[at]
        expected, _ = step(alone, [[mine[at]] for mine in tensors], [alone.init([spec]) for _ in range(2)], Key(3))
        assert torch.equal(means[0][at], expected[0][0]), name


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Partition({}), ValueError, 'Partition: no rules given; end with {"rest": ...}'),
        (
            lambda: Partition({"matrices": AllGather(Sign())}),
            ValueError,
            "Partition: 'matrices' is no rule; use \"matrix\"",
        ),
        (lambda: Partition({"numel>5": AllGather(Sign())}), ValueError, "Partition: 'numel>5' is no rule"),
        (lambda: Partition({1: AllGather(Sign())}), TypeError, 'a rule is a text such as "matrix" or "rest", got 1.'),
        (
            lambda: Partition({"matrix": Sign()}),
            TypeError,
            "the rule 'matrix' needs an aggregator such as AllGather(...), got Sign()",
        ),
        (
            lambda: Partition((("rest", AllGather(Sign())), ("rest", AllGather(Sign())))),
            ValueError,
            "a rule is given twice in ['rest', 'rest']; give each once",
        ),
        (
            lambda: Partition({"matrix": AllGather(Sign())}).init([TensorSpec((3,), name="b")]),
            ValueError,
            "Partition: no rule fits tensor 'b' of shape (3,); end with {\"rest\": ...}",
        ),
    ],
)
def test_a_partition_refuses(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        make()


def test_a_partition_passes_its_parts_warnings_on() -> None:
    method = Partition({"matrix": PowerSGD(rank=3), "rest": AllReduce(Identity())})
    with pytest.warns(UserWarning, match="compresses none of the 1 tensors"):
        method.init([TensorSpec((4, 4), name="w"), TensorSpec((4,), name="b")])
