"""Token files of nanoGPT and llm.c."""

import numpy as np
import pytest

from tasks.files import write_llmc_tokens, write_tokens
from thriftgrad.tasks.lookup import DataError
from thriftgrad.tasks.token_reader import read_tokens

TOKENS = np.array([0, 1, 50256, 65535, 7])


@pytest.mark.parametrize("write", [write_tokens, write_llmc_tokens])
def test_tokens_come_back_as_a_read_only_map(tmp_path, write):
    tokens = read_tokens(write(tmp_path / "train.bin", TOKENS))
    assert tokens.tolist() == TOKENS.tolist()
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_a_file_shorter_than_a_header_is_plain_tokens(tmp_path):
    assert read_tokens(write_tokens(tmp_path / "train.bin", TOKENS[:1])).tolist() == [0]


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_half_a_token_is_refused(tmp_path, content):
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"is empty or truncated: {len(content)} bytes are not a whole number of 2-byte"
    ):
        read_tokens(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"magic": 20240801}, r"holds 32-bit tokens \(llm.c's magic 20240801\); write 16-bit ones, magic 20240520\."),
        ({"version": 2}, r"has an llm.c header of version 2; only version 1 is known\."),
        ({"count": 6}, r"truncated or corrupt: its header states 6 tokens, so 1036 bytes, and it has 1034\."),
        ({"count": 4}, "its header states 4 tokens, so 1032 bytes, and it has 1034"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, header, message):
    path = write_llmc_tokens(tmp_path / "train.bin", TOKENS, **header)
    with pytest.raises(DataError, match=message):
        read_tokens(path)


def test_a_header_without_tokens_is_refused(tmp_path):
    path = write_llmc_tokens(tmp_path / "train.bin", TOKENS[:0])
    with pytest.raises(DataError, match="its header states 0 tokens"):
        read_tokens(path)
