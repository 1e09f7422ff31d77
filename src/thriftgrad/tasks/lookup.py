"""Where the user's own data lies. It is found, or the error says where to get it: nothing is downloaded or made up."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

VARIABLE = "THRIFTGRAD_DATA"
"""The environment variable that names the data folder."""


DataDir: TypeAlias = str | os.PathLike[str] | None


class DataError(ValueError):
    """Data is missing, truncated, corrupt or not what it should be."""


def locate(data_dir: DataDir, what: str, expected: Sequence[str], source: str) -> Path:
    """The first path of `expected` (glob patterns) in the data folder.

    The folder is `data_dir`, else the environment variable THRIFTGRAD_DATA, else ./data. The first that is given is the
    only one searched, so a wrong folder is an error and never silently another one's data.

    Args:
        data_dir: the folder, or None.
        what: the data's name, for the error.
        expected: paths relative to the folder, preferred first.
        source: where people get the data, for the error.

    Raises:
        DataError: the folder is missing, or holds none of `expected`.
    """
    folder = Path(data_dir if data_dir is not None else os.environ.get(VARIABLE) or "data")
    for pattern in expected:
        for path in sorted(folder.glob(pattern)):
            return path
    problem = f"No {what} in the folder {folder}" if folder.is_dir() else f"There is no folder {folder} with {what}"
    raise DataError(
        f"{problem}: expected {' or '.join(expected)}; {source}; "
        f"name its folder with data_dir or {VARIABLE}, or put it in ./data."
    )


def sha256(paths: Iterable[Path]) -> str:
    """The sha256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
