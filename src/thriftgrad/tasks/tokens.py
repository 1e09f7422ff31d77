"""The task "tokens": the user's own token files, and a transformer."""

from functools import partial

from thriftgrad.tasks.language import Windows, bits_per_token, next_token_loss
from thriftgrad.tasks.lookup import DataDir, DataError, locate
from thriftgrad.tasks.models import GPT, initialised
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Task
from thriftgrad.tasks.token_reader import read_tokens

CONTEXT = 256  # tokens


def tokens(data_dir: DataDir = None) -> Task:
    """Token files, *train*.bin and *val*.bin, and a GPT over the largest token that occurs.

    Raises:
        DataError: the data is missing or corrupt, or too short for one window of 256 tokens.
    """
    sources = "nanoGPT's prepare.py and llm.c's dev/data scripts write such files"
    found = locate(data_dir, "training tokens", ["*train*.bin"], sources)
    locate(found.parent, "validation tokens", ["*val*.bin"], sources)
    train_paths, held_out_paths = (sorted(found.parent.glob(pattern)) for pattern in ("*train*.bin", "*val*.bin"))
    train, held_out = (
        Windows([read_tokens(path) for path in paths], CONTEXT) for paths in (train_paths, held_out_paths)
    )
    for part, windows in ((train_paths[0], train), (held_out_paths[0], held_out)):
        if len(windows) == 0:
            raise DataError(f"{part} is too short: one window needs {CONTEXT + 1} tokens.")
    vocabulary = 1 + max(int(stream.max()) for stream in (*train.streams, *held_out.streams))
    held_out_sample = held_out.sample(64)

    return Task(
        name="tokens",
        description=DESCRIPTIONS["tokens"],
        quality="bits per token",
        higher_is_better=False,
        target=7.0,
        batch_size=8,
        steps=4000,
        learning_rate=0.1,
        evaluate_every=200,
        provenance={
            "source": ", ".join(path.name for path in (*train_paths, *held_out_paths)),
            "tokens": str(sum(len(stream) for stream in train.streams)),
            "vocabulary": str(vocabulary),
        },
        samples=len(train),
        build=partial(initialised, partial(GPT, vocabulary, CONTEXT, width=256, depth=4, heads=8)),
        draw=lambda indices, _: train.batch(indices),
        loss=next_token_loss,
        evaluate=lambda model: bits_per_token(model, held_out_sample),
    )
