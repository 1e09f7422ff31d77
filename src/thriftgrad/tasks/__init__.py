"""Tasks: data, a model, a loss and a quality to reach. Importing this module imports neither torch nor scikit-learn."""

from __future__ import annotations

import difflib
import warnings
from typing import TYPE_CHECKING

from thriftgrad.tasks.lookup import DataDir, DataError
from thriftgrad.tasks.names import DESCRIPTIONS, EMBEDDED, OWN_DATA

if TYPE_CHECKING:
    from thriftgrad.tasks.task import Task

__all__ = ["DESCRIPTIONS", "EMBEDDED", "OWN_DATA", "DataError", "load"]


def load(name: str, data_dir: DataDir = None, *, image_size: int | None = None) -> Task:
    """The task called `name`, with its data read and checked.

    Args:
        name: one of `DESCRIPTIONS`.
        data_dir: where the user's own data lies; else the environment variable THRIFTGRAD_DATA, else ./data.
        image_size: of "images": every image is cropped and resized to this many pixels a side, 64 if not given.

    Raises:
        ValueError: no task has this name.
        DataError: the data is missing or corrupt. Nothing is ever downloaded.

    Example:
        >>> load("digits").quality
        'test accuracy'
    """
    if name not in DESCRIPTIONS:
        close = difflib.get_close_matches(name.lower(), DESCRIPTIONS, n=1)
        hint = f"did you mean {close[0]!r}? The" if close else "the"
        raise ValueError(f"There is no task {name!r}; {hint} tasks are {', '.join(DESCRIPTIONS)}.")
    if data_dir is not None and name in EMBEDDED:
        warnings.warn(f"data_dir has no effect on {name!r}, whose data is embedded.", stacklevel=2)
    if image_size is not None and name != "images":
        warnings.warn(f"image_size has no effect on {name!r}, only on 'images'.", stacklevel=2)

    from thriftgrad.tasks.digits import digits, digits18, digits32
    from thriftgrad.tasks.logreg import logreg
    from thriftgrad.tasks.own_images import cifar10, images, mnist
    from thriftgrad.tasks.softmax import softmax
    from thriftgrad.tasks.text import lstm, text
    from thriftgrad.tasks.tokens import tokens

    if name == "images":
        return images(data_dir, 64 if image_size is None else image_size)
    if name in OWN_DATA:
        return {"cifar10": cifar10, "mnist": mnist, "tokens": tokens}[name](data_dir)
    images_of_digits = {"digits": digits, "digits18": digits18, "digits32": digits32}
    return (images_of_digits | {"logreg": logreg, "lstm": lstm, "softmax": softmax, "text": text})[name]()
