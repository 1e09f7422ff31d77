"""Which bucket an element belongs to."""

from __future__ import annotations

import triton
import triton.language as tl

FAR = tl.constexpr(2**30)


@triton.jit
def bucket_of(start, at, bucket):
    """(start + at) // bucket, for int64 start and bucket, with one long division in all; at: int32, below 2**30."""
    first = start // bucket
    end = tl.minimum((first + 1) * bucket - start, FAR).to(tl.int32)
    width = tl.minimum(bucket, FAR).to(tl.int32)
    return first + tl.where(at < end, 0, 1 + tl.maximum(at - end, 0) // width)
