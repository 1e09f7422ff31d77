"""Methods whose workers train on their own between two syncs."""

from __future__ import annotations

from typing import Any

from thriftgrad.aggregate import Aggregator, AllGather, AllReduce, InBasis, ParameterServer
from thriftgrad.compress import (
    DCT,
    BinMeans,
    ChunkedTopK,
    Identity,
    Sign,
    SmallFloat,
    Tile,
    TopK,
)
from thriftgrad.core import Compressor, ErrorFeedback
from thriftgrad.local import (
    AsyncServer,
    Every,
    InnerAdamW,
    InnerSGD,
    LocalMethod,
    OuterSGD,
    OuterSign,
    PostLocal,
    RandomGaps,
    Schedule,
    SlowMo,
    Streaming,
)

_SIGN = Sign()


def local_sgd(h: int = 8, momentum: float = 0.9) -> LocalMethod:
    """Workers train on their own for ``h`` steps, then take the mean of their models.

    Momentum sits on each worker and is not averaged. h=1 without momentum is minibatch SGD.
    Stich, Local SGD Converges Fast and Communicates Little, ICLR 2019, arXiv:1805.09767, which has no momentum.
    """
    paper = "Stich, Local SGD Converges Fast and Communicates Little, ICLR 2019, arXiv:1805.09767"
    return LocalMethod(AllReduce(Identity()), Every(h), InnerSGD(momentum=momentum), paper=paper)


def post_local_sgd(switch: int = 100, h: int = 16, momentum: float = 0.9) -> LocalMethod:
    """The mean of the models at every step up to ``switch``, then every ``h`` steps.

    Momentum (Nesterov's) sits on each worker and is not averaged; at h=1 it acts as if it came after aggregation.
    Lin et al., Don't Use Large Mini-Batches, Use Local SGD, ICLR 2020, arXiv:1808.07217, which switches at the first
    drop of the learning rate.
    """
    paper = "Lin et al., Don't Use Large Mini-Batches, Use Local SGD, ICLR 2020, arXiv:1808.07217"
    inner = InnerSGD(momentum=momentum, nesterov=momentum > 0)
    return LocalMethod(AllReduce(Identity()), PostLocal(switch, h), inner, paper=paper)


def qsparse_local_sgd(
    k: int | None = None,
    quantizer: Compressor[Any, Any] | None = _SIGN,
    h: int = 8,
    asynchronous: bool = False,
    fraction: float | None = None,
    momentum: float = 0.9,
) -> LocalMethod:
    """The k largest coordinates of each tensor's drift plus memory, quantised, every ``h`` steps.

    ``k`` coordinates (1000 if nothing is said), or this ``fraction`` of each tensor. ``quantizer=None`` sends them as
    they are; the default, their signs and mean magnitude, makes it SignTopK. ``asynchronous``: to a server, each worker
    after gaps of its own, drawn from 1 ... h. Momentum (Nesterov's) sits on each worker and is never sent; memories are
    in parameter units.
    Basu et al., Qsparse-local-SGD, NeurIPS 2019, arXiv:1906.02367.
    """
    chosen = TopK(k=1000) if k is None and fraction is None else TopK(fraction=fraction, k=k)
    sent = ErrorFeedback(chosen if quantizer is None else chosen >> quantizer)
    aggregator = AsyncServer(sent) if asynchronous else AllGather(sent)
    schedule: Schedule = RandomGaps(h) if asynchronous else Every(h)
    return LocalMethod(
        aggregator,
        schedule,
        InnerSGD(momentum=momentum, nesterov=momentum > 0),
        buffers="local" if asynchronous else "average",  # a server averages none
        paper="Basu et al., Qsparse-local-SGD, NeurIPS 2019, arXiv:1906.02367",
    )


def mem_sgd(fraction: float = 0.01, momentum: float = 0.0) -> LocalMethod:
    """The largest coordinates of (learning rate times gradient) plus memory, at every step.

    The memory is in parameter units, so a drop of the learning rate leaves it as it is; compare ``top_k``, whose
    memory is in gradient units. No momentum in the paper; here it would sit on each worker.
    Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599, for several workers.
    """
    paper = "Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599"
    aggregator = AllGather(ErrorFeedback(TopK(fraction=fraction)))
    return LocalMethod(aggregator, Every(1), InnerSGD(momentum=momentum), paper=paper)


def ef_sgd(compressor: Compressor[Any, Any] = _SIGN, momentum: float = 0.9) -> LocalMethod:
    """Any contraction of (learning rate times gradient) plus memory, at every step: EF-SGD; by default EF-SignSGD.

    The memory is in parameter units; momentum sits on each worker, before it. ``ef_sign_sgd`` keeps gradient units.
    Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019, arXiv:1901.09847.
    """
    paper = "Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019, arXiv:1901.09847"
    aggregator = AllGather(ErrorFeedback(compressor))
    return LocalMethod(aggregator, Every(1), InnerSGD(momentum=momentum), learning_rate_scale=0.3, paper=paper)


def dist_ef_sgd(momentum: float = 0.9) -> LocalMethod:
    """Signs with each tensor's mean magnitude to a server and back, with a memory at either end.

    Both memories are in parameter units, which is the paper's rescaling by the ratio of learning rates; momentum
    (Nesterov's) sits on each worker. A block is a tensor.
    Zheng et al., Blockwise Momentum SGD with Error-Feedback, NeurIPS 2019, arXiv:1905.10936.
    """
    paper = "Zheng et al., Blockwise Momentum SGD with Error-Feedback, NeurIPS 2019, arXiv:1905.10936"
    aggregator = ParameterServer(ErrorFeedback(Sign()), ErrorFeedback(Sign()))
    inner = InnerSGD(momentum=momentum, nesterov=momentum > 0)
    return LocalMethod(aggregator, Every(1), inner, learning_rate_scale=0.3, paper=paper)


def slow_mo(h: int = 12, momentum: float = 0.9, slow_momentum: float = 0.7) -> LocalMethod:
    """Local SGD with a second, slow momentum on the mean drift.

    The fast momentum sits on each worker, the slow one after aggregation, in gradient units.
    Wang et al., SlowMo, ICLR 2020, arXiv:1910.00643. Differs: worker's momentum is kept from sync to sync.
    """
    paper = "Wang et al., SlowMo, ICLR 2020, arXiv:1910.00643"
    outer = SlowMo(momentum=slow_momentum)
    return LocalMethod(
        AllReduce(Identity()), Every(h), InnerSGD(momentum=momentum), outer, learning_rate_scale=0.3, paper=paper
    )


def diloco(
    h: int = 500, outer_learning_rate: float = 0.7, outer_momentum: float = 0.9, weight_decay: float = 0.1
) -> LocalMethod:
    """AdamW on each worker for ``h`` steps, Nesterov SGD on the mean drift.

    Adam's moments stay with the worker; the outer momentum sits after aggregation.
    Douillard et al., DiLoCo, 2023, arXiv:2311.08105.
    """
    outer = OuterSGD(outer_learning_rate, outer_momentum, nesterov=outer_momentum > 0)
    paper = "Douillard et al., DiLoCo, 2023, arXiv:2311.08105"
    inner = InnerAdamW(weight_decay=weight_decay)
    return LocalMethod(AllReduce(Identity()), Every(h), inner, outer, learning_rate_scale=_ADAMW, paper=paper)


def streaming_diloco(
    h: int = 30, fragments: int = 3, delay: int = 1, mixing: float = 0.5, outer_learning_rate: float = 0.7
) -> LocalMethod:
    """DiLoCo fragment by fragment, in 4 bits: each part of the model every ``h`` steps, used ``delay`` steps later.

    What arrives is mixed half and half with what the worker has learned meanwhile. The outer momentum sits after
    aggregation, Adam's moments stay with the worker.
    Douillard et al., Streaming DiLoCo, 2025, arXiv:2501.18512. Differs: whole modules are dealt out in turn, where the
    paper takes three layers at a time; the 4 bits are a sign and 3 exponent bits on a scale for every 512 coordinates.
    """
    return LocalMethod(
        AllGather(SmallFloat("e3m0")),
        Streaming(h, fragments, delay, mixing),
        InnerAdamW(weight_decay=0.1),
        OuterSGD(outer_learning_rate),
        learning_rate_scale=_ADAMW,
        paper="Douillard et al., Streaming DiLoCo, 2025, arXiv:2501.18512",
    )


def sparse_loco(h: int = 15, fraction: float = 1 / 64, bits: int = 2, decay: float = 0.95) -> LocalMethod:
    """The largest of every 64 x 64 coordinates of AdamW's drift plus a fading memory, every ``h`` steps.

    Each in ``bits`` bits, with a table of values for each tensor. No outer momentum: the fading memory takes its place.
    Sarfi et al., SparseLoCo, 2025, arXiv:2508.15706. Differs: the mean is over workers, where some of the code has it
    over those who sent a coordinate (``mean="senders"``), and no worker's message is clipped.
    """
    sent = Tile(64) >> ChunkedTopK(fraction=fraction, chunk=None) >> BinMeans(bits=bits)
    return LocalMethod(
        AllGather(ErrorFeedback(sent, decay=decay)),
        Every(h),
        InnerAdamW(weight_decay=0.1),
        learning_rate_scale=_ADAMW,
        paper="Sarfi et al., SparseLoCo, 2025, arXiv:2508.15706",
    )


def demo(k: int = 32, chunk: int = 64, decay: float = 0.999) -> LocalMethod:
    """The ``k`` largest cosine coefficients of every tile of a fading sum of gradients; then signs.

    A tile has ``chunk`` x ``chunk`` coordinates at most. Each coefficient is averaged over those who sent it; every
    coordinate moves by the learning rate. What was sent leaves the sum wholly. The sum is the
    momentum, on each worker, before compression.
    Peng et al., DeMo, 2024, arXiv:2411.19870.
    """
    sent = ErrorFeedback(ChunkedTopK(k=k, chunk=None), decay=decay)
    aggregator: Aggregator[Any] = InBasis(DCT(chunk), AllGather(sent, mean="senders"))
    paper = "Peng et al., DeMo, 2024, arXiv:2411.19870"
    return LocalMethod(aggregator, Every(1), InnerSGD(), OuterSign(), learning_rate_scale=_SIGNS, paper=paper)


_ADAMW = 0.03
"""AdamW's sound learning rate relative to that of SGD with momentum 0.9."""

_SIGNS = 0.03
"""The same for steps of equal length in every coordinate."""
