"""Tasks on the user's own images. Targets, steps and learning rates are customary, not measured: state your own."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thriftgrad.tasks.classification import accuracy, cross_entropy
from thriftgrad.tasks.image_readers import (
    CIFAR10_TEST,
    CIFAR10_TRAIN,
    ImageFiles,
    Images,
    list_images,
    read_cifar10_binary,
    read_cifar10_pickle,
    read_idx_images,
    read_image,
)
from thriftgrad.tasks.lookup import DataDir, DataError, locate, sha256
from thriftgrad.tasks.models import SmallCNN, cifar_resnet, initialised, resnet18
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Batch, Indices, Task, spread

Pixels = NDArray[np.uint8]  # [n, channels, height, width]
ToInput = Callable[[Pixels], Tensor]


def standardised(pixels: Pixels, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """(pixels / 255 - mean) / deviation per channel, float32[n, channels, height, width]."""
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, deviation))
    return (torch.from_numpy(pixels).float() / 255 - shift) / scale


# What the published models were trained with.
cifar_input = partial(standardised, mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616))
imagenet_input = partial(standardised, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
grey_input = partial(standardised, mean=(0.0,), deviation=(1.0,))


def crop_and_flip(pixels: Pixels, generator: np.random.Generator, margin: int = 4) -> Pixels:
    """Images padded with `margin` black pixels, cropped to their old size at random places, half of them mirrored."""
    n, channels, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    rows = generator.integers(0, 2 * margin, size=(n, 1), endpoint=True) + np.arange(height)
    columns = generator.integers(0, 2 * margin, size=(n, 1), endpoint=True) + np.arange(width)
    columns = np.where(generator.random((n, 1)) < 0.5, columns[:, ::-1], columns)
    image, channel = np.ix_(np.arange(n), np.arange(channels))
    image, channel = image[..., None, None], channel[..., None, None]
    result: Pixels = padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return result


def in_order(samples: int, batch: Callable[[Indices], Batch], size: int = 256) -> Iterator[Batch]:
    """All samples once, in batches that fit into memory."""
    return (batch(np.arange(start, min(start + size, samples))) for start in range(0, samples, size))


def accuracy_on_all(test: Images, to_input: ToInput, model: nn.Module) -> float:
    """Accuracy on the whole test set."""
    batch = partial(images_and_labels, test, to_input)
    return accuracy(model, in_order(len(test.labels), batch))


def images_and_labels(images: Images, to_input: ToInput, indices: Indices) -> Batch:
    """The images of these numbers, unaltered, with their labels."""
    return to_input(images.pixels[indices]), torch.from_numpy(images.labels[indices])


def cifar10(data_dir: DataDir = None) -> Task:
    """CIFAR-10 in its binary or Python layout, with the customary augmentation, and ResNet-20.

    Raises:
        DataError: the data is missing or corrupt.
    """
    found = locate(
        data_dir,
        "CIFAR-10",
        (
            "cifar-10-batches-bin/data_batch_1.bin",
            "data_batch_1.bin",
            "cifar-10-batches-py/data_batch_1",
            "data_batch_1",
        ),
        "people get it from https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    read = read_cifar10_binary if found.suffix == ".bin" else read_cifar10_pickle
    paths = [found.with_name(name + found.suffix) for name in CIFAR10_TRAIN + CIFAR10_TEST]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{found.parent} lacks {path.name}; CIFAR-10 is five data batches and a test batch.")
    *parts, test = [read(path) for path in paths]
    train = Images(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def draw(indices: Indices, generator: np.random.Generator) -> Batch:
        pixels = crop_and_flip(train.pixels[indices], generator)
        return cifar_input(pixels), torch.from_numpy(train.labels[indices])

    return Task(
        name="cifar10",
        description=DESCRIPTIONS["cifar10"],
        quality="test accuracy",
        higher_is_better=True,
        target=0.8,
        batch_size=32,
        steps=4000,
        learning_rate=0.1,
        evaluate_every=200,
        provenance={"source": "CIFAR-10", "sha256": sha256(paths)},
        samples=len(train.labels),
        build=partial(initialised, partial(cifar_resnet, 20)),
        draw=draw,
        loss=cross_entropy,
        evaluate=partial(accuracy_on_all, test, cifar_input),
    )


def mnist(data_dir: DataDir = None) -> Task:
    """MNIST, Fashion-MNIST or any other square grey images in IDX files, and the small CNN.

    Raises:
        DataError: the data is missing or corrupt.
    """
    folders = ("", "MNIST/raw/", "mnist/")
    found = locate(
        data_dir,
        "MNIST",
        [f"{folder}train-images-idx3-ubyte{suffix}" for folder in folders for suffix in ("", ".gz")],
        "people get it from http://yann.lecun.com/exdb/mnist, "
        "or Fashion-MNIST from https://github.com/zalandoresearch/fashion-mnist",
    )
    paths = [
        locate(found.parent, "complete MNIST", [name, f"{name}.gz"], "its four files lie in one folder")
        for part in ("train", "t10k")
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    ]
    train, test = read_idx_images(*paths[:2]), read_idx_images(*paths[2:])
    image_size, classes = train.pixels.shape[-1], int(train.labels.max()) + 1
    if test.pixels.shape[-1] != image_size or test.labels.max() >= classes:
        raise DataError(f"{paths[0]} and {paths[2]} do not belong together: their image sizes or classes differ.")

    return Task(
        name="mnist",
        description=DESCRIPTIONS["mnist"],
        quality="test accuracy",
        higher_is_better=True,
        target=0.97,
        batch_size=32,
        steps=1000,
        learning_rate=0.1,
        evaluate_every=50,
        provenance={"source": "IDX files", "sha256": sha256(paths)},
        samples=len(train.labels),
        build=partial(initialised, partial(SmallCNN, image_size, classes)),
        draw=lambda indices, _: images_and_labels(train, grey_input, indices),
        loss=cross_entropy,
        evaluate=partial(accuracy_on_all, test, grey_input),
    )


EVALUATED_IMAGES = 2000  # at most, spread evenly over the validation folder: decoding more would outlast the training


def images(data_dir: DataDir = None, image_size: int = 64) -> Task:
    """A folder of images, train/<class>/* and val/<class>/*, cropped and resized to `image_size`, and ResNet-18.

    Raises:
        ValueError: `image_size` is below 8, the factor by which the network shrinks an image.
        DataError: the data is missing, or an image cannot be read (found when it is drawn).
    """
    if image_size < 8:
        raise ValueError(f"image_size must be at least 8 pixels, not {image_size}.")
    root = locate(data_dir, "image folders", ["train/"], "it is laid out as train/<class>/*.jpg and val/<class>/*.jpg")
    train, held_out = list_images(root), list_images(root.with_name("val"))
    if train.classes != held_out.classes:
        only = ", ".join(sorted(set(train.classes) ^ set(held_out.classes)))
        raise DataError(f"{root} and {root.with_name('val')} must have the same classes; only one of them has {only}.")

    def pixels_and_labels(files: ImageFiles, indices: Indices) -> tuple[Pixels, Tensor]:
        pixels = np.stack([read_image(files.paths[i], image_size) for i in indices])
        return pixels, torch.from_numpy(files.labels[indices])

    def draw(indices: Indices, generator: np.random.Generator) -> Batch:
        pixels, labels = pixels_and_labels(train, indices)
        return imagenet_input(crop_and_flip(pixels, generator)), labels

    evaluated = spread(len(held_out.labels), EVALUATED_IMAGES)

    def held_out_batch(indices: Indices) -> Batch:
        pixels, labels = pixels_and_labels(held_out, evaluated[indices])
        return imagenet_input(pixels), labels

    return Task(
        name="images",
        description=DESCRIPTIONS["images"],
        quality="validation accuracy",
        higher_is_better=True,
        target=0.5,
        batch_size=32,
        steps=4000,
        learning_rate=0.05,
        evaluate_every=400,
        provenance={
            "source": f"{len(train.paths)} images in {len(train.classes)} classes, {image_size} x {image_size} pixels",
            "evaluated on": f"{len(evaluated)} of {len(held_out.paths)} validation images",
        },
        samples=len(train.paths),
        build=partial(initialised, partial(resnet18, len(train.classes))),
        draw=draw,
        loss=cross_entropy,
        evaluate=lambda model: accuracy(model, in_order(len(evaluated), held_out_batch)),
    )
