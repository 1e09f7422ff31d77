"""An index that is there twice would be counted twice where estimates are added, and once where they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from thriftgrad.compress import ChunkedTopK, TopK
from thriftgrad.core import Key, PayloadError, TensorSpec


@pytest.mark.parametrize("compressor", [TopK(k=3), ChunkedTopK(k=3, chunk=10)], ids=repr)
def test_it_is_refused_either_way(compressor: TopK | ChunkedTopK) -> None:
    x = torch.randn(20)
    payload, _ = compressor.compress(x, None, Key(0))
    indices = payload.side.indices.clone()
    indices[1] = indices[0]
    altered = replace(payload, side=payload.side._replace(indices=indices))
    with pytest.raises(PayloadError, match="indices that do not ascend"):
        compressor.decompress(altered)
    with pytest.raises(PayloadError, match="indices that do not ascend"):
        compressor.add_to(TensorSpec.of(x).zeros(), altered)
