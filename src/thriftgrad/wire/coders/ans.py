"""Asymmetric numeral systems: within a fraction of a percent of the entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import Bytes, Ints, floor_log2
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import (
    alphabet_of,
    model_of,
    optional,
    packed,
    packed_bytes,
    prefix_bytes,
    split,
    stream_of,
    tensor_of,
    unpacked,
    values_of,
)

MOST_SYMBOLS = 4096
"""Larger alphabets are packed: a table of their probabilities would be as long as the symbols."""
FIXED, CODED = 0, 1


@dataclass(frozen=True, repr=False)
class ANS(Coder):
    """Independent symbols in their entropy, by the ANS coder of the package constriction.

    The probabilities are the carrier's own (``TensorSpec.probabilities``) if it has some. Otherwise they are the counts
    in this tensor, which travel in front, a byte for each symbol of the alphabet: 3 bits after the leading one, 5 of
    exponent, so to 1/16. The first byte is 1, or 0 where packing to a fixed width is shorter (always for
    alphabets above 4096): a stream is at most one byte longer than packed symbols.

    Raises ``ImportError`` without the package constriction.
    Duda, 2013, arXiv:1311.2540; Bamler, Understanding Entropy Coding With Asymmetric Numeral Systems, 2022,
    arXiv:2201.01741.

    >>> import torch; from thriftgrad import TensorSpec
    >>> rare = torch.ones(1000, dtype=torch.uint8); rare[::50] = 2
    >>> len(ANS().encode(rare, TensorSpec((1000,), torch.uint8, alphabet=3, zero=1)))  # entropy: 18 bytes
    24
    """

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        values, alphabet = values_of(symbols, spec, self), alphabet_of(spec, self)
        candidates = [np.concatenate((np.array([FIXED], np.uint8), packed(values, alphabet)))]
        if len(values) and 1 < alphabet <= MOST_SYMBOLS:
            weights = model_of(spec, self)
            table = np.empty(0, np.uint8) if weights else _rounded(np.bincount(values, minlength=alphabet))
            ans = optional("constriction", self).stream.stack.AnsCoder()
            ans.encode_reverse(values.astype(np.int32), self._categorical(weights or _counts(table)))
            words = ans.get_compressed().astype("<u4").view(np.uint8)
            candidates.append(np.concatenate((np.array([CODED], np.uint8), table, words)))
        return stream_of(min(candidates, key=len), len(values), spec, symbols)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        alphabet, weights = alphabet_of(spec, self), model_of(spec, self)
        count, coded = split(stream, spec)
        if not len(coded) or coded[0] not in (FIXED, CODED):
            raise PayloadError("payload: the first byte is neither 0 (packed) nor 1 (coded); it was altered.")
        if coded[0] == FIXED:
            return tensor_of(unpacked(coded[1:], count, alphabet), spec)
        table, words = np.split(coded[1:], [0 if weights else alphabet])
        if not count or not 1 < alphabet <= MOST_SYMBOLS or (weights is None and not table.any()):
            raise PayloadError(f"payload: {count} symbols of {alphabet} kinds without counts; it was altered.")
        if len(table) not in (0, alphabet) or len(words) % 4 or (len(words) and not words[-4:].any()):
            raise PayloadError(f"payload: {len(words)} bytes are no ANS stream; it was truncated or altered.")
        compressed = words.copy().view("<u4").astype(np.uint32)
        ans = optional("constriction", self).stream.stack.AnsCoder(compressed)
        values = ans.decode(self._categorical(weights or _counts(table)), count)
        if not ans.is_empty():
            raise PayloadError(f"payload: the stream says more than {count} symbols; it was altered on the way.")
        return tensor_of(values, spec)

    def limit_bytes(self, spec: TensorSpec) -> int:
        return prefix_bytes(spec) + 1 + packed_bytes(spec.numel, alphabet_of(spec, self))

    def _categorical(self, weights: Any) -> Any:
        """The model; a symbol of weight 0 keeps the least probability there is, 2**-24."""
        model = optional("constriction", self).stream.model
        return model.Categorical(np.asarray(weights, np.float64), perfect=False)


def _rounded(counts: Ints) -> Bytes:
    """Counts in a byte each: exact below 16, then the nearest of eight values in each octave."""
    exponents = np.maximum(floor_log2(np.maximum(counts, 1)) - 3, 0)
    mantissas = np.rint(counts / (1 << exponents)).astype(np.int64)  # 0 ... 16
    return (8 * exponents + mantissas).astype(np.uint8)


def _counts(table: Bytes) -> NDArray[np.float64]:
    """The inverse of ``_rounded``: m for m < 8; beyond, (8 + m % 8) * 2**(m // 8 - 1)."""
    m = table.astype(np.int64)
    return np.where(m < 8, m, (8.0 + m % 8) * 2.0 ** (m // 8 - 1))
