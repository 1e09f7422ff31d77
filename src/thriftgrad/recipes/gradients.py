"""Methods that exchange gradients at every step."""

from __future__ import annotations

from typing import Any, Literal

from thriftgrad.aggregate import (
    Aggregator,
    AllGather,
    AllReduce,
    GradiVeQ,
    LocalClip,
    LocalMomentum,
    ParameterServer,
    PowerSGD,
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
    Atomo,
    BestRank,
    Cast,
    Identity,
    MomentumCorrection,
    NaturalCompression,
    OneBit,
    RandomK,
    Sign,
    SpectralAtomo,
    TernGrad,
    TopK,
    UnbiasedLowRank,
    Vote,
    WarmUp,
)
from thriftgrad.core import ErrorFeedback
from thriftgrad.core.expression import nearest
from thriftgrad.train.method import Method


def sgd(precision: Literal["fp32", "bf16", "fp16"] = "fp32", momentum: float = 0.9) -> Method:
    """Plain data-parallel SGD, gradients all-reduced in the given precision: the baselines of every table.

    Momentum sits after aggregation. Raises ``ValueError`` for another precision.
    Robbins and Monro, 1951; mixed precision: Micikevicius et al., 2018, arXiv:1710.03740.
    """
    if precision not in ("fp32", "bf16", "fp16"):
        raise ValueError(f"sgd: unknown precision {precision!r}; {nearest(precision, ('fp32', 'bf16', 'fp16'))}.")
    if precision == "fp32":
        paper = "Robbins and Monro, A Stochastic Approximation Method, 1951"
        return Method(AllReduce(Identity()), momentum=momentum, paper=paper)
    paper = "Micikevicius et al., Mixed Precision Training, ICLR 2018, arXiv:1710.03740"
    return Method(AllReduce(Cast(precision)), momentum=momentum, paper=paper)


def qsgd(bits: int = 4, bucket: int = 512, momentum: float = 0.9) -> Method:
    """Gradients rounded without bias to 2**(bits - 1) - 1 uniform levels of each bucket's l2 norm, gathered by all.

    No memory; momentum sits after aggregation, as in the paper's experiments.
    Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132. Differs: every tensor is quantised, where the paper sends
    small ones as they are, and symbols travel at fixed width, where the paper adds Elias codes.
    """
    paper = "Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132"
    return Method(AllGather(QSGD(bits=bits, bucket=bucket)), momentum=momentum, paper=paper)


def qsgd_inf(bits: int = 4, bucket: int = 512, momentum: float = 0.9) -> Method:
    """QSGD scaled by each bucket's largest magnitude, the variant of the paper's experiments.

    No memory; momentum sits after aggregation.
    Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132, section 5. Differs as ``qsgd`` does.
    """
    paper = "Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132"
    return Method(AllGather(QSGD(bits=bits, bucket=bucket, norm="linf")), momentum=momentum, paper=paper)


def nuqsgd(bits: int = 4, bucket: int = 8192, momentum: float = 0.9) -> Method:
    """Gradients rounded without bias to powers of two of each bucket's l2 norm, gathered by all.

    No memory; momentum sits after aggregation, as in the paper's experiments.
    Ramezani-Kebrya et al., NUQSGD, JMLR 2021, arXiv:1908.06077. Differs: symbols travel at fixed width, where the paper
    adds Elias codes: AllGather(NUQSGD(...) >> Elias(sparse=True)).
    """
    paper = "Ramezani-Kebrya et al., NUQSGD, JMLR 2021, arXiv:1908.06077"
    return Method(AllGather(NUQSGD(bits=bits, bucket=bucket)), momentum=momentum, paper=paper)


def terngrad(clip: float | None = 2.5, momentum: float = 0.9) -> Method:
    """Three levels on each tensor's largest magnitude over all workers, after clipping; symbols are added at a server.

    The server's answer takes one of 2 N + 1 levels, so both directions are compressed and no error is made on the way
    back. ``clip=None``: without clipping. No memory; momentum sits after aggregation.
    Wen et al., TernGrad, NeurIPS 2017, arXiv:1705.07878. Differs: the last layer is quantised like the others.
    """
    paper = "Wen et al., TernGrad, NeurIPS 2017, arXiv:1705.07878"
    return Method(SymbolServer(TernGrad(clip=clip)), momentum=momentum, paper=paper)


def alq(bits: int = 3, bucket: int = 8192, include_zero: bool = True, momentum: float = 0.9) -> Method:
    """Gradients rounded without bias to the levels of least variance for them, gathered by all.

    The whole DDP bucket (in a simulation, the whole model) is one vector with one set of levels, fitted at steps 0,
    100, 2000 and every 10,000th. No memory; momentum sits after aggregation.
    Faghri et al., Adaptive Gradient Quantization, NeurIPS 2020, arXiv:2010.12460. Differs: the distribution is the
    histogram of the gradients themselves, and the last, shorter bucket is quantised like the others.
    """
    quantizer = ALQ(bits=bits, bucket=bucket, include_zero=include_zero, per_tensor=False)
    return Method(AllGather(quantizer), momentum=momentum, paper=_FAGHRI)


def alq_n(bits: int = 3, bucket: int = 8192, include_zero: bool = True, momentum: float = 0.9) -> Method:
    """ALQ with every bucket counted alike, whatever its norm; momentum sits after aggregation.

    Faghri et al., Adaptive Gradient Quantization, NeurIPS 2020, arXiv:2010.12460. Differs as ``alq`` does.
    """
    quantizer = ALQ_N(bits=bits, bucket=bucket, include_zero=include_zero, per_tensor=False)
    return Method(AllGather(quantizer), momentum=momentum, paper=_FAGHRI)


def amq(bits: int = 3, bucket: int = 8192, include_zero: bool = False, momentum: float = 0.9) -> Method:
    """Gradients rounded without bias to powers of the multiplier that is best for them, gathered by all.

    One vector and one multiplier for the whole DDP bucket, as in ``alq``. No memory; momentum sits after aggregation.
    Faghri et al., Adaptive Gradient Quantization, NeurIPS 2020, arXiv:2010.12460. Differs as ``alq`` does.
    """
    quantizer = AMQ(bits=bits, bucket=bucket, include_zero=include_zero, per_tensor=False)
    return Method(AllGather(quantizer), momentum=momentum, paper=_FAGHRI)


def amq_n(bits: int = 3, bucket: int = 8192, include_zero: bool = False, momentum: float = 0.9) -> Method:
    """AMQ with every bucket counted alike, whatever its norm; momentum sits after aggregation.

    Faghri et al., Adaptive Gradient Quantization, NeurIPS 2020, arXiv:2010.12460. Differs as ``alq`` does.
    """
    quantizer = AMQ_N(bits=bits, bucket=bucket, include_zero=include_zero, per_tensor=False)
    return Method(AllGather(quantizer), momentum=momentum, paper=_FAGHRI)


_FAGHRI = "Faghri et al., Adaptive Gradient Quantization, NeurIPS 2020, arXiv:2010.12460"


def natural(momentum: float = 0.9) -> Method:
    """Each coordinate's sign and a power of two, 9 bits, gathered by all. No memory; momentum sits after aggregation.

    Horvath et al., Natural Compression, 2019, arXiv:1905.10988. Differs: it is not applied a second time on the way
    back.
    """
    paper = "Horvath et al., Natural Compression, 2019, arXiv:1905.10988"
    return Method(AllGather(NaturalCompression()), momentum=momentum, paper=paper)


def one_bit_sgd(bucket: int = 512, momentum: float = 0.9) -> Method:
    """The sign of gradient plus memory, with the means of each bucket's two halves, gathered by all.

    The memory is in gradient units; momentum sits after aggregation.
    Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014. Differs: buckets of coordinates, where the paper
    has columns, and the mean goes back as it is; bounds for such a memory: Karimireddy et al., 2019, arXiv:1901.09847.
    """
    paper = "Seide et al., 1-Bit SGD, Interspeech 2014; Karimireddy et al., ICML 2019, arXiv:1901.09847"
    aggregator = AllGather(ErrorFeedback(OneBit(bucket=bucket)))
    return Method(aggregator, momentum=momentum, learning_rate_scale=0.3, paper=paper)


def eden(bits: int = 2, momentum: float = 0.9) -> Method:
    """Each tensor rotated at random and rounded to the best levels for a Gaussian, gathered by all.

    No memory; momentum sits after aggregation. Every worker has a rotation of its own, so that errors average out.
    Vargaftik et al., EDEN, ICML 2022, arXiv:2108.08842.
    """
    paper = "Vargaftik et al., EDEN, ICML 2022, arXiv:2108.08842"
    return Method(AllGather(EDEN(bits=bits)), momentum=momentum, paper=paper)


def drive(momentum: float = 0.9) -> Method:
    """The signs of each tensor after a random rotation, one bit a coordinate, gathered by all.

    No memory; momentum sits after aggregation. Every worker has a rotation of its own, so that errors average out.
    Vargaftik et al., DRIVE, NeurIPS 2021, arXiv:2105.08339.
    """
    paper = "Vargaftik et al., DRIVE, NeurIPS 2021, arXiv:2105.08339"
    return Method(AllGather(DRIVE()), momentum=momentum, paper=paper)


def top_k(fraction: float = 0.01, momentum: float = 0.9) -> Method:
    """The largest coordinates of gradient plus memory, tensor by tensor, gathered by all.

    The memory is in gradient units (no learning rate inside); momentum sits after aggregation.
    Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599, which has no momentum and keeps the
    learning rate in the memory; the two agree while the learning rate is constant.
    """
    paper = "Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599"
    return Method(AllGather(ErrorFeedback(TopK(fraction=fraction))), momentum=momentum, paper=paper)


def random_k(fraction: float = 0.01, momentum: float = 0.9) -> Method:
    """Random coordinates of gradient plus memory on a shared support, all-reduced.

    The memory is in gradient units; momentum sits after aggregation.
    Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599; differs as ``top_k`` does.
    """
    paper = "Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599"
    aggregator = AllReduce(ErrorFeedback(RandomK(fraction=fraction, rescale=False)))
    return Method(aggregator, momentum=momentum, learning_rate_scale=0.1, paper=paper)


_VOTE = ParameterServer(up=Sign(scaled=False), down=Vote())


def sign_sgd() -> Method:
    """The majority vote of the workers' gradient signs: one bit a coordinate up, 1.6 down. No memory, no momentum.

    Does not converge in general (Karimireddy et al., 2019, arXiv:1901.09847); ``ef_sign_sgd`` mends it.
    Bernstein et al., signSGD, ICML 2018, arXiv:1802.04434. Differs: a tied vote is zero, in the paper's code +1.
    """
    paper = "Bernstein et al., signSGD, ICML 2018, arXiv:1802.04434"
    return Method(_VOTE, momentum=0.0, learning_rate_scale=0.1, momentum_place="none", paper=paper)


def signum(momentum: float = 0.9) -> Method:
    """The majority vote of the signs of each worker's own momentum m' = beta m + (1 - beta) g.

    Momentum sits on each worker, before compression; none follows. No memory.
    Bernstein et al., signSGD, ICML 2018, arXiv:1802.04434, Algorithm 2. Differs as ``sign_sgd`` does.
    """
    place = f"{momentum} on each worker, before compression"
    paper = "Bernstein et al., signSGD, ICML 2018, arXiv:1802.04434"
    aggregator = LocalMomentum(_VOTE, beta=momentum)
    return Method(aggregator, momentum=0.0, learning_rate_scale=0.03, momentum_place=place, paper=paper)


def ef_sign_sgd(momentum: float = 0.9) -> Method:
    """The signs of gradient plus memory, scaled by each tensor's mean magnitude, gathered by all.

    The memory is in gradient units; momentum sits after aggregation.
    Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019, arXiv:1901.09847, which keeps the learning rate in the
    memory; the two agree while the learning rate is constant.
    """
    paper = "Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019, arXiv:1901.09847"
    aggregator = AllGather(ErrorFeedback(Sign()))
    return Method(aggregator, momentum=momentum, learning_rate_scale=0.3, paper=paper)


def power_sgd(rank: int = 2, momentum: float = 0.9, plus_gradient: bool = False) -> Method:
    """Rank-r factors of gradient plus memory, all-reduced; vectors and small matrices as they are.

    The memory is in gradient units; momentum sits after aggregation. ``plus_gradient``: the paper's step, gradient + m,
    a longer one (11 against 10 times a steady gradient at momentum 0.9).
    Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727. Differs: the optimiser applies m unless asked, the memory
    is local, and matrices that factors would not halve travel as they are (PowerSGD(min_compression_rate=0) has none).
    """
    return Method(PowerSGD(rank=rank), momentum=momentum, plus_gradient=plus_gradient, paper=_VOGELS)


_VOGELS = "Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727"


def acp_sgd(rank: int = 4, momentum: float = 0.9) -> Method:
    """The left and the right factor by turns, one all-reduce a step; half of PowerSGD's floats at the same rank.

    The memory is in gradient units; momentum sits after aggregation. What a step leaves out waits for twice as many
    steps, so the largest stable learning rate is about half of PowerSGD's of the same rank.
    Zhang et al., ACP-SGD, ICDCS 2023, arXiv:2306.08881. Differs as ``power_sgd`` does.
    """
    paper = "Zhang et al., ACP-SGD, ICDCS 2023, arXiv:2306.08881"
    return Method(PowerSGD(rank=rank, alternating=True), momentum=momentum, learning_rate_scale=0.5, paper=paper)


def best_rank(rank: int = 2, momentum: float = 0.9) -> Method:
    """Each worker's best rank-r approximation of gradient plus memory, by a full SVD, gathered by all.

    The memory is in gradient units; momentum sits after aggregation.
    The best approximation of Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727. Differs: there it is one of the
    workers' mean, by more power iterations from a new start; for that PowerSGD(warm_start=False, power_iterations=2).
    """
    return Method(AllGather(ErrorFeedback(BestRank(rank=rank))), momentum=momentum, paper=_VOGELS)


def unbiased_low_rank(rank: int = 2, momentum: float = 0.9) -> Method:
    """Gradients times a random matrix that all workers share, all-reduced: unbiased, and of high variance.

    No memory; momentum sits after aggregation. The learning rate is an eighth of plain SGD's, as in the paper's code.
    The unbiased baseline of Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727. Differs: the published code runs
    it with the factors of the step before, which is not unbiased; here the matrix is drawn anew at every step.
    """
    aggregator = AllReduce(UnbiasedLowRank(rank=rank))
    return Method(aggregator, momentum=momentum, learning_rate_scale=0.125, paper=_VOGELS)


_WANG = "Wang et al., ATOMO, NeurIPS 2018, arXiv:1806.04090"


def atomo(fraction: float = 0.01, momentum: float = 0.9) -> Method:
    """Coordinates drawn with the probabilities of least variance, and divided by them, gathered by all.

    No memory; momentum sits after aggregation.
    Wang et al., ATOMO, NeurIPS 2018, arXiv:1806.04090. Differs: a fixed number of coordinates of each tensor, where
    the paper has it in the mean.
    """
    return Method(AllGather(Atomo(fraction=fraction)), momentum=momentum, paper=_WANG)


def spectral_atomo(rank: int = 3, momentum: float = 0.9) -> Method:
    """Singular triples drawn with the probabilities of least variance, and divided by them, gathered by all.

    No memory; momentum sits after aggregation.
    Wang et al., ATOMO, NeurIPS 2018, arXiv:1806.04090. Differs: r triples, where the paper has r in the mean and the
    published codes draw again, with a bias, if the number does not suit them; vectors and small matrices travel as
    they are, and matrices keep their rows, where the code folds them to be nearly square.
    """
    return Method(AllGather(SpectralAtomo(rank=rank)), momentum=momentum, paper=_WANG)


def gradiveq(slice_elements: int = 256, components: int = 32, momentum: float = 0.9) -> Method:
    """Slices of gradient plus memory in a subspace, all-reduced; it is learned from bursts of whole gradients.

    One step as it is, then 19 compressed K / d = 8 times: 17 % of the floats in all. The memory is in gradient units;
    momentum sits after aggregation.
    Yu et al., GradiVeQ, NeurIPS 2018, arXiv:1811.03617, of which slice size, components and phases were not verified.
    """
    paper = "Yu et al., GradiVeQ, NeurIPS 2018, arXiv:1811.03617"
    return Method(GradiVeQ(slice_elements=slice_elements, components=components), momentum=momentum, paper=paper)


def dgc(
    fraction: float = 0.001,
    momentum: float = 0.9,
    clip: float | None = None,
    warm_up_every: int | None = None,
    nesterov: bool = False,
) -> Method:
    """The largest coordinates of each worker's accumulated momentum, gathered by all: Deep Gradient Compression.

    Momentum sits on each worker, before compression, and is zeroed where a coordinate is sent (factor masking); none
    follows. ``clip``: each tensor of a gradient is first scaled to at most this l2 norm over the square root of
    the number of workers. ``warm_up_every``: steps (the paper: an epoch) at each of the keep fractions 1/4, 1/16, 1/64
    and 1/250 before ``fraction``.
    Lin et al., Deep Gradient Compression, ICLR 2018, arXiv:1712.01887. Differs: the largest are found exactly,
    where the paper samples a threshold, and small tensors are compressed like the others.
    """
    final = TopK(fraction=fraction)
    stages = tuple(TopK(fraction=share) for share in _DGC_WARM_UP if share > fraction)
    if warm_up_every is not None and not stages:
        raise ValueError(
            f"dgc: warm_up_every={warm_up_every} has no effect at fraction={fraction}, where a warm-up begins; "
            "leave it out."
        )
    chosen = final if warm_up_every is None else WarmUp((*stages, final), every=warm_up_every)
    aggregator: Aggregator[Any] = AllGather(MomentumCorrection(chosen, momentum=momentum, nesterov=nesterov))
    aggregator = aggregator if clip is None else LocalClip(aggregator, threshold=clip)
    place = f"{momentum} on each worker, before compression"
    paper = "Lin et al., Deep Gradient Compression, ICLR 2018, arXiv:1712.01887"
    return Method(aggregator, momentum=0.0, momentum_place=place, paper=paper)


_DGC_WARM_UP = (1 / 4, 1 / 16, 1 / 64, 1 / 250)


def double_squeeze(fraction: float = 0.01, momentum: float = 0.9) -> Method:
    """The largest coordinates of gradient plus memory to a server, and of their mean plus its memory back.

    Both memories are in gradient units; momentum sits after aggregation.
    Tang et al., DoubleSqueeze, ICML 2019, arXiv:1905.05957, whose analysis has no momentum.
    """
    compressor = ErrorFeedback(TopK(fraction=fraction))
    paper = "Tang et al., DoubleSqueeze, ICML 2019, arXiv:1905.05957"
    return Method(ParameterServer(compressor, compressor), momentum=momentum, paper=paper)
