"""Tiny files in the layouts that users bring."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

CIFAR10_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def cifar10_arrays(seed: int, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072), dtype=np.uint8), generator.integers(0, 10, n)


def write_cifar10_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate(CIFAR10_NAMES):
        pixels, labels = cifar10_arrays(seed)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels.astype(np.uint8), pixels]).tobytes())
    return folder


def write_cifar10_pickle(path: Path, **changed: object) -> Path:
    pixels, labels = cifar10_arrays(0)
    entries = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"1 of 5"}
    entries |= {name.encode(): value for name, value in changed.items()}
    path.write_bytes(pickle.dumps(entries, protocol=3))
    return path


def idx(values: np.ndarray, magic: int | None = None) -> bytes:
    values = values.astype(np.uint8)
    start = 0x0800 + values.ndim if magic is None else magic
    return struct.pack(f">i{values.ndim}I", start, *values.shape) + values.tobytes()


def write_mnist(folder: Path, gzipped: bool = False, size: int = 8) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, n in (("train", 12), ("t10k", 6)):
        files = {
            f"{part}-images-idx3-ubyte": idx(generator.integers(0, 256, (n, size, size))),
            f"{part}-labels-idx1-ubyte": idx(np.arange(n) % 3),
        }
        for name, content in files.items():
            if gzipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def write_image(path: Path, size: tuple[int, int] = (12, 12), colour: tuple[int, int, int] = (255, 0, 0)) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_image_folder(root: Path) -> Path:
    for part, n in (("train", 3), ("val", 1)):
        for name, colour in (("sea", (0, 0, 255)), ("grass", (0, 255, 0))):
            for number in range(n):
                write_image(root / part / name / f"{number}.png", colour=colour)
    return root


def write_tokens(path: Path, tokens: np.ndarray) -> Path:
    path.write_bytes(tokens.astype("<u2").tobytes())
    return path


def write_llmc_tokens(path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1, count: int = -1) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count < 0 else count
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path
