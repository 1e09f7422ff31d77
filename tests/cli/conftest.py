"""The command line, called in this process and in a folder of its own."""

from typing import NamedTuple

import pytest

from thriftgrad.cli import main


class Result(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THRIFTGRAD_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        return Result(ended.value.code, *capsys.readouterr())

    return call
