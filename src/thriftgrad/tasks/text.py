"""The task "text": Python's own documentation, byte by byte, and a small transformer."""

import hashlib
import platform
from functools import partial

import numpy as np

from thriftgrad.tasks.language import Windows, bits_per_token, next_token_loss
from thriftgrad.tasks.lookup import DataError
from thriftgrad.tasks.models import GPT, initialised
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
    corpus = prose()
    stream = np.frombuffer(corpus, dtype=np.uint8)
    cut = len(stream) * 9 // 10
    train = Windows([stream[:cut]], CONTEXT)
    held_out = Windows([stream[cut:]], CONTEXT).sample(128)

    return Task(
        name="text",
        description=DESCRIPTIONS["text"],
        quality="bits per byte",
        higher_is_better=False,
        target=2.5,
        batch_size=8,
        steps=1000,
        learning_rate=0.1,
        evaluate_every=50,
        provenance={
            "source": "pydoc_data.topics of the running Python",
            "sha256": hashlib.sha256(corpus).hexdigest(),
            "licence": "PSF-2.0, with Python",
            "python": platform.python_version(),
        },
        samples=len(train),
        build=partial(initialised, partial(GPT, vocabulary=256, context=CONTEXT)),
        draw=lambda indices, _: train.batch(indices),
        loss=next_token_loss,
        evaluate=lambda model: bits_per_token(model, held_out),
    )
