"""Readers for the user's image files: CIFAR-10, MNIST and its kin, and folders of images."""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thriftgrad.tasks.lookup import DataError


class Images(NamedTuple):
    """Pixels uint8[n, channels, height, width] and labels int64[n]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


# -- CIFAR-10, Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 --

CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_TEST = ("test_batch",)
CIFAR10_RECORD_BYTES = 1 + 3 * 32 * 32
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Of the published pickles; a pickle that is not the published one is refused before it is opened."""


def read_cifar10_binary(path: Path) -> Images:
    """One `.bin` file: records of one label byte and 3 x 32 x 32 pixel bytes.

    Raises:
        DataError: the file is not a whole number of records, or a label is above nine.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if len(content) == 0 or len(content) % CIFAR10_RECORD_BYTES:
        raise DataError(
            f"{path} is truncated or no CIFAR-10 file: its {len(content)} bytes are not a whole number of "
            f"{CIFAR10_RECORD_BYTES}-byte records."
        )
    records = content.reshape(-1, CIFAR10_RECORD_BYTES)
    return _checked_cifar10(path, records[:, 1:], records[:, 0].astype(np.int64))


def read_cifar10_pickle(path: Path, checksums: Mapping[str, str] = CIFAR10_MD5) -> Images:
    """One pickled batch of the Python version. Only numpy's array constructors may run while it is read.

    Raises:
        DataError: the md5 is not the published one, the pickle is corrupt or asks for anything else than an array, or
            its entries are not those of CIFAR-10.
    """
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if path.name in checksums and digest != checksums[path.name]:
        raise DataError(
            f"{path} is truncated or altered: its md5 is {digest}, the published file's {checksums[path.name]}."
        )
    batch = load_arrays(path)
    try:
        pixels = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no CIFAR-10 batch: it lacks the entries b'data' and b'labels'.") from error
    return _checked_cifar10(path, pixels, labels)


def _checked_cifar10(path: Path, pixels: NDArray[Any], labels: NDArray[np.int64]) -> Images:
    if pixels.dtype != np.uint8 or pixels.shape != (*labels.shape, 3072):
        raise DataError(
            f"{path} is no CIFAR-10 batch: expected pixels uint8[n, 3072] with n labels, "
            f"got {pixels.dtype}{list(pixels.shape)} with {labels.size} labels."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() <= 9:
        raise DataError(
            f"{path} is corrupt: CIFAR-10's labels are 0 to 9, and it has {labels.min()} to {labels.max()}."
        )
    return Images(pixels.reshape(-1, 3, 32, 32), labels)


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # what every pickled array names first; its module moved in numpy 2
_ARRAY_CONSTRUCTORS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Finds numpy's array constructors and nothing else, so a hostile pickle cannot name a function to run."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ARRAY_CONSTRUCTORS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load_arrays(path: Path) -> Any:
    """The content of a pickle made of plain values and numpy arrays.

    Raises:
        DataError: the pickle is corrupt, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # corrupt bytes can make the unpickler raise almost anything
        raise DataError(
            f"{path} is corrupt or not a pickle of plain arrays: {error or type(error).__name__}."
        ) from error


# -- MNIST and data sets in its form (IDX), LeCun, Cortes and Burges --


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or gzipped (`.gz`).

    Layout: two zero bytes, type code 8, the number of dimensions, each length as a big-endian uint32, the bytes.

    Raises:
        DataError: corrupt gzip, wrong magic number, or another number of bytes than the header states.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a truncated or corrupt gzip file: {error}.") from error
    magic, expected = int.from_bytes(content[:4], "big"), 0x0800 + dimensions
    header_bytes = 4 + 4 * dimensions
    if magic != expected or len(content) < header_bytes:
        raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimensions: magic {magic}, not {expected}.")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", count=dimensions, offset=4))
    values = np.frombuffer(content, np.uint8, offset=header_bytes)
    count = 1
    for length in shape:
        count *= length  # Python's integers: a hostile header cannot overflow them
    if count != len(values):
        raise DataError(
            f"{path} is truncated or corrupt: its header states {list(shape)}, it holds {len(values)} values."
        )
    return values.reshape(shape)


def read_idx_images(images: Path, labels: Path) -> Images:
    """Grey images and their labels from two IDX files.

    Raises:
        DataError: a file is corrupt, the files do not belong together, or the images are not squares.
    """
    pixels, classes = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(pixels) != len(classes) or len(pixels) == 0:
        raise DataError(f"{images} has {len(pixels)} images and {labels} has {len(classes)} labels; they must match.")
    if pixels.shape[1] != pixels.shape[2]:
        raise DataError(f"{images} has images of {pixels.shape[1]} x {pixels.shape[2]} pixels; squares are expected.")
    return Images(pixels[:, np.newaxis], classes.astype(np.int64))


# -- folders of images, one folder per class, as ImageNet's --

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


class ImageFiles(NamedTuple):
    """Paths of images, their labels int64[n], and the names of the classes in the order of the labels."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def list_images(folder: Path) -> ImageFiles:
    """The images of `folder/<class>/*.jpg|jpeg|png`; classes and files are sorted by name.

    Raises:
        DataError: there are no class folders, or one has no images.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise DataError(f"{folder} has no class folders; expected {folder}/<class>/*.jpg, *.jpeg or *.png.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"{folder / name} has no images; expected *.jpg, *.jpeg or *.png.")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), np.array(labels, dtype=np.int64), tuple(classes))


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """The largest central square of an image, in RGB, resized to uint8[3, size, size].

    Raises:
        DataError: pillow is not installed, or cannot read the file.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError('Folders of images need pillow; run pip install "thriftgrad[data]".') from error
    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image: {error}.") from error
    return np.asarray(square).transpose(2, 0, 1)
