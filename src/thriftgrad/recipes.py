"""The papers' methods by their names, with the papers' defaults: one function each, returning a ``Method``.

What a recipe returns prints as the expression it stands for, so a reader sees the parts and can change one.

Error feedback delays what it does not send, by about 1 / delta steps, and a long delay wants a shorter step: hence
``learning_rate_scale`` below 1 for the coarsest of them. Votes have steps of length one in every coordinate.

>>> from thriftgrad import recipes
>>> recipes.top_k(fraction=0.01).aggregator
AllGather(compressor=ErrorFeedback(compressor=TopK(fraction=0.01)))
"""

from __future__ import annotations

from typing import Literal

from thriftgrad.aggregate import AllGather, AllReduce, LocalMomentum, ParameterServer, PowerSGD
from thriftgrad.compress import QSGD, Cast, Identity, RandomK, Sign, TopK, Vote
from thriftgrad.core import ErrorFeedback
from thriftgrad.core.expression import nearest
from thriftgrad.train.method import Method

__all__ = ["ef_sign_sgd", "power_sgd", "qsgd", "qsgd_inf", "random_k", "sgd", "sign_sgd", "signum", "top_k"]


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


def power_sgd(rank: int = 2, momentum: float = 0.9) -> Method:
    """Rank-r factors of gradient plus memory, all-reduced; vectors and small matrices as they are.

    The memory is in gradient units; momentum sits after aggregation.
    Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727. Differs: the optimiser applies m, where the paper applies
    gradient + m (a longer step: 11 against 10 times the gradient at momentum 0.9), and the memory is local.
    """
    paper = "Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727"
    return Method(PowerSGD(rank=rank), momentum=momentum, paper=paper)
