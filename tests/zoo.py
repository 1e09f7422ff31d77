"""Every public method, at several settings each: the rows that the laws run over.

A new compressor, aggregator or recipe needs a row here; ``tests/laws/test_zoo.py`` fails until it has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from thriftgrad import recipes
from thriftgrad.aggregate import (
    AllGather,
    AllReduce,
    LocalMomentum,
    ParameterServer,
    Partition,
    PowerSGD,
    ScatterReduce,
    SymbolServer,
)
from thriftgrad.compress import (
    ALQ,
    ALQ_N,
    AMQ,
    AMQ_N,
    DRIVE,
    EDEN,
    NUQSGD,
    QSGD,
    Cast,
    Identity,
    Lloyd,
    NaturalCompression,
    OneBit,
    Quantizer,
    RandomK,
    Sign,
    SmallFloat,
    TernGrad,
    TopK,
    Vote,
)
from thriftgrad.core import Compressor, ErrorFeedback, LinearCompressor, Shrink
from thriftgrad.core.compressor import Expression
from thriftgrad.train.method import Method
from thriftgrad.wire.coders import ANS, Elias, GolombRice, Huffman, Zstd

DETERMINISTIC: tuple[Compressor[Any, Any], ...] = (
    Identity(),
    Cast("bf16"),
    Cast("fp16"),
    TopK(fraction=0.1),
    TopK(k=3),
    Sign(),
    Sign(bucket=8),
    Sign(scaled=False),
    Sign(order=2),
    Sign(bucket=8, order=5),
    Vote(),
    TopK(fraction=0.2) >> Cast("bf16"),
    TopK(fraction=0.2) >> Sign(),
    TopK(fraction=0.5) >> TopK(fraction=0.5) >> Identity(),
    Identity() >> TopK(k=2),
    Sign() >> Identity(),
    Cast("fp16") >> Identity(),
    ErrorFeedback(TopK(fraction=0.1)),
    ErrorFeedback(TopK(k=3), decay=0.9),
    ErrorFeedback(Sign(bucket=8)),
    ErrorFeedback(Cast("bf16")),
    ErrorFeedback(TopK(fraction=0.2) >> Sign()),
    ErrorFeedback(TopK(k=3)) >> Identity(),
    TopK(fraction=0.1, index_coder=GolombRice()),
    TopK(fraction=0.1, index_coder=Elias(code="delta")) >> Sign(),
    ErrorFeedback(TopK(fraction=0.1, index_coder=GolombRice())),
    Sign(bucket=8) >> Huffman(),
    TopK(k=9) >> Vote() >> ANS(),
    Zstd(),
    Cast("bf16") >> Zstd(level=3),
    OneBit(),
    OneBit(bucket=8),
    ErrorFeedback(OneBit(bucket=8)),
    Lloyd(bits=3),
    Lloyd(bits=1, bucket=16, norm="linf", distribution="normal"),
    Lloyd(bits=4, bucket=16, per_tensor=False, weight_power=0, update_at=(), update_every=3),
    ErrorFeedback(Lloyd(bits=2, bucket=16)),
    TopK(fraction=0.2) >> Lloyd(bits=2),
    SmallFloat("e4m3"),
    SmallFloat("e5m2", bucket=16),
    SmallFloat("e2m1", bucket=32),
    SmallFloat("e3m0", bucket=None),
    ErrorFeedback(SmallFloat("e3m0")),
    TopK(fraction=0.2) >> SmallFloat("e2m1") >> Huffman(),
)

RANDOM: tuple[Compressor[Any, Any], ...] = (
    QSGD(bits=2),
    QSGD(bits=4),
    QSGD(bits=8),
    QSGD(levels=1, bucket=16),
    QSGD(levels=255, bucket=None),
    QSGD(levels=128, bucket=100, norm="linf") >> Huffman(),
    QSGD(levels=5, bucket=10, norm="linf"),
    QSGD(bits=4, norm="linf"),
    QSGD(bits=3, bucket=1),
    QSGD(bits=3, include_zero=False, bucket=16),
    QSGD(bits=8, include_zero=False, norm="linf"),
    QSGD(bits=1, include_zero=False, bucket=4, per_tensor=False),
    NUQSGD(bits=4),
    NUQSGD(bits=3, bucket=16),
    NUQSGD(bits=8, bucket=100, norm="linf"),
    NUQSGD(bits=2, include_zero=False, bucket=10, per_tensor=False),
    Quantizer(levels=(0.0, 0.1, 1.0)),
    Quantizer(levels=(-1.0, -0.3, 0.05, 1.0), bucket=16, norm="linf", per_tensor=False),
    TernGrad(),
    TernGrad(clip=None, shared_scale=False),
    TernGrad(clip=None, bucket=16, per_tensor=False),
    NaturalCompression(),
    ALQ(bits=3),
    ALQ(bits=4, bucket=16, norm="linf", include_zero=False, distribution="normal"),
    ALQ(bits=3, bucket=64, include_zero=False, reference_mode="ltq"),
    ALQ(bits=2, bucket=1, weight_power=1, update_at=(0, 3), update_every=None, per_tensor=False),
    ALQ_N(bits=3, bucket=32),
    AMQ(bits=3),
    AMQ(bits=4, bucket=16, include_zero=True, norm="linf", per_tensor=False),
    AMQ(bits=3, bucket=64, weight_power=1, distribution="normal", reference_mode="ltq", update_at=(), update_every=2),
    AMQ_N(bits=3, bucket=32),
    EDEN(bits=2),
    EDEN(bits=4, bucket=64, scale="biased"),
    DRIVE(),
    DRIVE(bucket=16, scale="biased"),
    QSGD(bits=4) >> Elias(),
    NUQSGD(bits=3) >> Elias(code="omega", sparse=True),
    TernGrad(clip=None, shared_scale=False) >> Elias(code="gamma"),
    QSGD(bits=3) >> Huffman(),
    ALQ(bits=3, bucket=64) >> Huffman(),
    AMQ(bits=4, bucket=64) >> ANS(),
    Shrink(ALQ(bits=3, bucket=16)) >> ANS(),
    QSGD(bits=3) >> GolombRice(),
    QSGD(bits=3) >> Zstd(),
    NUQSGD(bits=3, bucket=16) >> Elias(sparse=True) >> Zstd(),
    ErrorFeedback(TopK(fraction=0.2) >> Shrink(QSGD(bits=3)) >> Huffman()),
    TopK(fraction=0.2) >> NUQSGD(bits=3),
    TopK(fraction=0.2) >> ALQ(bits=3),
    TopK(fraction=0.5) >> Identity() >> ALQ(bits=3) >> Identity(),
    TopK(fraction=0.5) >> Cast("bf16") >> TernGrad(clip=None),
    Shrink(ALQ(bits=3, bucket=16)),
    Shrink(NUQSGD(bits=3, bucket=16)),
    ErrorFeedback(EDEN(bits=2, scale="biased")),
    ErrorFeedback(Shrink(ALQ(bits=3, bucket=16))),
    RandomK(fraction=0.25),
    RandomK(k=3),
    RandomK(fraction=0.25, rescale=False),
    Shrink(QSGD(bits=2)),
    Shrink(RandomK(fraction=0.25)),
    TopK(fraction=0.2) >> QSGD(bits=4),
    TopK(fraction=0.2) >> QSGD(bits=8, bucket=64),
    TopK(k=3) >> Shrink(QSGD(bits=2)),
    RandomK(fraction=0.25) >> Cast("bf16"),
    Shrink(RandomK(fraction=0.25)) >> Cast("bf16"),
    RandomK(fraction=0.5) >> QSGD(bits=4, norm="linf"),
    RandomK(fraction=0.5, rescale=False) >> RandomK(fraction=0.5, rescale=False),
    QSGD(bits=4) >> Identity(),
    ErrorFeedback(RandomK(fraction=0.25, rescale=False)),
    ErrorFeedback(QSGD(bits=8)),
    ErrorFeedback(Shrink(QSGD(bits=2)), decay=0.5),
    ErrorFeedback(TopK(fraction=0.2) >> Shrink(QSGD(bits=3))),
)

COMPRESSORS = DETERMINISTIC + RANDOM
LINEAR = tuple(each for each in COMPRESSORS if isinstance(each, LinearCompressor))
WITH_MEMORY = tuple(each for each in COMPRESSORS if each.has_memory)

AGGREGATORS: tuple[Any, ...] = (
    AllReduce(Identity()),
    AllReduce(Cast("bf16")),
    AllReduce(RandomK(fraction=0.25)),
    AllReduce(RandomK(fraction=0.25) >> Cast("fp16")),
    AllReduce(ErrorFeedback(RandomK(fraction=0.25, rescale=False))),
    AllGather(Identity()),
    AllGather(QSGD(bits=4)),
    AllGather(TopK(fraction=0.1)),
    AllGather(ErrorFeedback(TopK(fraction=0.2) >> Shrink(QSGD(bits=3)))),
    AllGather(Sign(bucket=8)),
    ScatterReduce(Identity(), Identity()),
    ScatterReduce(QSGD(bits=4), QSGD(bits=8)),
    ScatterReduce(ErrorFeedback(Sign()), ErrorFeedback(Sign())),
    ScatterReduce(TopK(k=2), RandomK(k=2)),
    ParameterServer(Identity(), Identity()),
    ParameterServer(Sign(scaled=False), Vote()),
    ParameterServer(ErrorFeedback(TopK(fraction=0.2)), ErrorFeedback(QSGD(bits=8))),
    AllGather(ALQ(bits=3, bucket=16)),
    AllGather(AMQ(bits=3, bucket=16, per_tensor=False)),
    AllGather(TernGrad(clip=None)),
    AllGather(ErrorFeedback(Lloyd(bits=2, bucket=16, update_at=(), update_every=2))),
    AllGather(TopK(fraction=0.2) >> ALQ(bits=3)),
    AllGather(TopK(fraction=0.5) >> Cast("bf16") >> ALQ(bits=3) >> Huffman()),
    ScatterReduce(ALQ(bits=3, bucket=16), ALQ_N(bits=4, bucket=16)),
    ScatterReduce(TernGrad(bucket=8), QSGD(bits=4, per_tensor=False)),
    ParameterServer(ALQ(bits=3, bucket=16), AMQ_N(bits=4, bucket=16, include_zero=True)),
    AllGather(ALQ(bits=3, bucket=16) >> Huffman()),
    AllGather(TopK(fraction=0.2, index_coder=GolombRice())),
    ScatterReduce(QSGD(bits=3) >> Elias(), QSGD(bits=4) >> Huffman()),
    ParameterServer(TernGrad(shared_scale=False) >> ANS(), QSGD(bits=8) >> Zstd()),
    SymbolServer(TernGrad()),
    SymbolServer(TernGrad(clip=None, bucket=16, per_tensor=False)),
    PowerSGD(rank=1),
    PowerSGD(rank=2, min_compression_rate=0),
    PowerSGD(rank=1, warm_start=False),
    PowerSGD(rank=1, power_iterations=2, start_after=1),
    LocalMomentum(AllGather(RandomK(fraction=0.25)), beta=0.5),
    LocalMomentum(PowerSGD(rank=1)),
    Partition({"matrix": PowerSGD(rank=1), "rest": AllReduce(Cast("bf16"))}),
    Partition(
        {
            "name:*bias": AllReduce(Identity()),
            "numel>=30": LocalMomentum(AllGather(ErrorFeedback(TopK(fraction=0.1))), beta=0.5),
            "numel<2": AllReduce(Cast("bf16")),
            "rest": ScatterReduce(QSGD(bits=4), QSGD(bits=4)),
        }
    ),
)

RECIPES: dict[str, tuple[Method, ...]] = {
    "sgd": (recipes.sgd(), recipes.sgd(precision="bf16"), recipes.sgd(precision="fp16", momentum=0.0)),
    "qsgd": (recipes.qsgd(), recipes.qsgd(bits=2, bucket=64)),
    "nuqsgd": (recipes.nuqsgd(), recipes.nuqsgd(bits=3, bucket=64)),
    "terngrad": (recipes.terngrad(), recipes.terngrad(clip=None)),
    "alq": (recipes.alq(), recipes.alq(bits=2, include_zero=False)),
    "alq_n": (recipes.alq_n(), recipes.alq_n(bits=4, bucket=64)),
    "amq": (recipes.amq(), recipes.amq(bits=2, include_zero=True)),
    "amq_n": (recipes.amq_n(), recipes.amq_n(bits=4, bucket=64)),
    "natural": (recipes.natural(),),
    "one_bit_sgd": (recipes.one_bit_sgd(), recipes.one_bit_sgd(bucket=64)),
    "eden": (recipes.eden(), recipes.eden(bits=4)),
    "drive": (recipes.drive(),),
    "qsgd_inf": (recipes.qsgd_inf(), recipes.qsgd_inf(bits=8)),
    "top_k": (recipes.top_k(), recipes.top_k(fraction=0.1)),
    "random_k": (recipes.random_k(), recipes.random_k(fraction=0.1)),
    "sign_sgd": (recipes.sign_sgd(),),
    "signum": (recipes.signum(), recipes.signum(momentum=0.5)),
    "ef_sign_sgd": (recipes.ef_sign_sgd(),),
    "power_sgd": (recipes.power_sgd(), recipes.power_sgd(rank=1, momentum=0.0)),
}

METHODS = (
    *(method for rows in RECIPES.values() for method in rows),
    Method(AllReduce(Identity()), momentum=0.8, nesterov=True),
)


def parts(row: Any) -> Iterator[Any]:
    """A row and everything it is built of."""
    yield row
    for value in vars(row).values():
        inner: Iterable[Any] = (each for _, each in value) if isinstance(row, Partition) else (value,)
        for each in inner:
            if isinstance(each, Expression):
                yield from parts(each)
