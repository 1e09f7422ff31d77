"""The operators of Qsparse-local-SGD by their names: a sparsifier, then a quantiser of what it keeps.

Functions that return chains, so that what is printed shows the parts: ``repr(SignTopK(k=10))`` is
``TopK(k=10) >> Sign()``. Their contractions follow from those of the parts (Lemmas 1 to 3), at the length k.
"""

from __future__ import annotations

from typing import Any

from thriftgrad.compress.quantize import QSGD
from thriftgrad.compress.random_k import RandomK
from thriftgrad.compress.sign import Sign
from thriftgrad.compress.top_k import TopK
from thriftgrad.core import Chain, Compressor, Shrink

__all__ = ["QRandK", "QTopK", "SignTopK"]


def SignTopK(  # noqa: N802  # an operator's name, as in the paper
    fraction: float | None = None,
    k: int | None = None,
    order: int = 1,
    index_coder: Compressor[Any, Any] | None = None,
) -> Chain:
    """TopK >> Sign: the signs of the k largest magnitudes y, each times |y|_m / k with m the ``order``.

    Wire: k bits, k indices and one float32. Claims, of n elements: a contraction with delta = 1 / n for m = 1
    (exactly, |x - C(x)|^2 = |x|^2 - |y|_1^2 / k), k**(2/m - 1) / n for m >= 2.

    Raises what ``TopK`` and ``Sign`` raise. Basu et al., 2019, arXiv:1906.02367, Lemma 3, where y may be any k
    coordinates and the bound for m = 1 has sqrt(n) in the place of sqrt(k).

    >>> SignTopK(k=10, order=2), SignTopK(k=10).contraction(1000)
    (TopK(k=10) >> Sign(order=2), 0.001)
    """
    return TopK(fraction, k, index_coder) >> Sign(order=order)


def QTopK(  # noqa: N802
    fraction: float | None = None,
    k: int | None = None,
    levels: int = 15,
    scaled: bool = True,
    index_coder: Compressor[Any, Any] | None = None,
) -> Chain:
    """TopK >> QSGD: the k largest magnitudes, rounded without bias to s ``levels`` of the norm of all k of them.

    ``scaled``: over 1 + beta, with beta = min(k / s**2, sqrt(k) / s), so TopK >> Shrink(QSGD).
    Wire: k symbols of ceil(log2(2 s + 1)) bits, k indices and one float32. Claims, of n elements: a contraction with
    delta = k / (n (1 + beta)) if scaled, and otherwise (1 - beta) k / n where beta < 1.

    Raises ``ValueError`` for an unscaled one with beta >= 1, which may even expand: at once if ``k`` is given; with a
    ``fraction`` k grows with the tensor, so ``ErrorFeedback`` refuses every unscaled one. Otherwise what ``TopK`` and
    ``QSGD`` raise. Basu et al., 2019, arXiv:1906.02367, Lemmas 1 and 2; the authors' code has beta = k / s**2.

    >>> QTopK(k=100), QTopK(k=100).contraction(1000) == 100 / (1000 * (1 + 100 / 15**2))
    (TopK(k=100) >> Shrink(compressor=QSGD(levels=15, bucket=None)), True)
    """
    return TopK(fraction, k, index_coder) >> _quantizer("QTopK", k, levels, scaled)


def QRandK(  # noqa: N802
    fraction: float | None = None, k: int | None = None, levels: int = 15, scaled: bool = True
) -> Chain:
    """RandomK(rescale=False) >> QSGD: k random coordinates, rounded like those of ``QTopK``.

    Wire: k symbols, a seed of 8 bytes and one float32. Claims and errors: those of ``QTopK``.
    Basu et al., 2019, arXiv:1906.02367, Lemmas 1 and 2.

    >>> QRandK(k=100, levels=255, scaled=False)
    RandomK(k=100, rescale=False) >> QSGD(levels=255, bucket=None)
    """
    return RandomK(fraction, k, rescale=False) >> _quantizer("QRandK", k, levels, scaled)


def _quantizer(name: str, k: int | None, levels: int, scaled: bool) -> Compressor[Any, Any]:
    quantizer = QSGD(levels=levels, bucket=None)
    if scaled:
        return Shrink(quantizer)
    beta = 0.0 if k is None else quantizer.variance_bound(k)
    if beta >= 1:
        raise ValueError(
            f"{name}: unscaled, {k} values on {levels} levels have a variance of up to beta = {beta:.3g} times their "
            "square, and from 1 on that is no contraction; use scaled=True or more levels."
        )
    return quantizer
