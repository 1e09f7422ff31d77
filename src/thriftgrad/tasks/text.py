"""The tasks "text" and "lstm": Python's own documentation, byte by byte, a small transformer and a small LSTM."""

import hashlib
import platform
from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from thriftgrad.tasks.language import Windows, bits_per_token, next_token_loss
from thriftgrad.tasks.lookup import DataError
from thriftgrad.tasks.models import GPT, LSTM, initialised
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Task

CONTEXT = 64  # bytes


def prose() -> bytes:
    """The topics of `pydoc_data.topics` in alphabetical order, as UTF-8. They differ between Python's patch releases.

    Raises:
        DataError: this Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "This Python has no pydoc_data.topics, the text that the task 'text' reads; "
            "install Python's complete standard library."
        ) from error
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def text() -> Task:
    """Python's documentation prose, about 466 kB; the last tenth is held out."""
    network = partial(GPT, vocabulary=256, context=CONTEXT)
    return _on_prose("text", network, CONTEXT, target=2.5, steps=1000, learning_rate=0.1)


def lstm() -> Task:
    """The same prose and the same share held out, in windows half as long, for a recurrent network."""
    return _on_prose("lstm", partial(LSTM, vocabulary=256), CONTEXT // 2, target=2.7, steps=500, learning_rate=1.0)


def _on_prose(
    name: str, network: Callable[[], nn.Module], context: int, *, target: float, steps: int, learning_rate: float
) -> Task:
    corpus = prose()
    stream = np.frombuffer(corpus, dtype=np.uint8)
    cut = len(stream) * 9 // 10
    train = Windows([stream[:cut]], context)
    held_out = Windows([stream[cut:]], context).sample(128)

    return Task(
        name=name,
        description=DESCRIPTIONS[name],
        quality="bits per byte",
        higher_is_better=False,
        target=target,
        batch_size=8,
        steps=steps,
        learning_rate=learning_rate,
        evaluate_every=50,
        provenance={
            "source": "pydoc_data.topics of the running Python",
            "sha256": hashlib.sha256(corpus).hexdigest(),
            "licence": "PSF-2.0, with Python",
            "python": platform.python_version(),
        },
        samples=len(train),
        build=partial(initialised, network),
        draw=lambda indices, _: train.batch(indices),
        loss=next_token_loss,
        evaluate=lambda model: bits_per_token(model, held_out),
    )
