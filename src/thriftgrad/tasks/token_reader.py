"""Reader for the user's token files, as nanoGPT and llm.c write them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thriftgrad.tasks.lookup import DataError

LLMC_MAGIC, LLMC_VERSION = 20240520, 1
LLMC_MAGIC_32_BIT = 20240801
LLMC_HEADER_BYTES = 256 * 4


def read_tokens(path: Path) -> NDArray[np.unsignedinteger[Any]]:
    """The tokens of a `.bin` file as a read-only memory map, little-endian uint16[n].

    nanoGPT: nothing but tokens. llm.c: a header of 256 int32, which starts with the magic number 20240520, version 1
    and the number of tokens, then the tokens.

    Raises:
        DataError: the file is empty or truncated, or has a header of another version.
    """
    size_bytes = path.stat().st_size
    if size_bytes == 0 or size_bytes % 2:
        raise DataError(f"{path} is empty or truncated: {size_bytes} bytes are not a whole number of 2-byte tokens.")
    with path.open("rb") as file:
        header = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype="<i4")
    magic, version, count = (int(value) for value in header)
    if magic == LLMC_MAGIC_32_BIT:
        raise DataError(f"{path} holds 32-bit tokens (llm.c's magic {magic}); write 16-bit ones, magic {LLMC_MAGIC}.")
    if magic != LLMC_MAGIC:
        return np.memmap(path, dtype="<u2", mode="r")
    if version != LLMC_VERSION:
        raise DataError(f"{path} has an llm.c header of version {version}; only version {LLMC_VERSION} is known.")
    if size_bytes != LLMC_HEADER_BYTES + 2 * count or count == 0:
        raise DataError(
            f"{path} is truncated or corrupt: its header states {count} tokens, "
            f"so {LLMC_HEADER_BYTES + 2 * count} bytes, and it has {size_bytes}."
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=LLMC_HEADER_BYTES)
