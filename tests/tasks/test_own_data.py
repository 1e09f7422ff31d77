"""The tasks on the user's own files, from the files to a training step, and where the files are looked for."""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from tasks.files import (
    CIFAR10_NAMES,
    cifar10_arrays,
    write_cifar10_binary,
    write_cifar10_pickle,
    write_image,
    write_image_folder,
    write_llmc_tokens,
    write_mnist,
    write_tokens,
)
from thriftgrad import tasks
from thriftgrad.tasks.image_readers import Images
from thriftgrad.tasks.lookup import DataError, locate, sha256
from thriftgrad.tasks.own_images import accuracy_on_all, cifar_input, crop_and_flip, grey_input, images, in_order


@pytest.fixture(autouse=True)
def no_data_of_this_machine(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("THRIFTGRAD_DATA", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def write_token_folder(root):
    root.mkdir()
    write_tokens(root / "train.bin", np.arange(1000) % 50)
    write_tokens(root / "val.bin", np.arange(600) % 60)
    return root


LAYOUTS = {
    "cifar10": write_cifar10_binary,
    "mnist": partial(write_mnist, size=8),
    "images": write_image_folder,
    "tokens": write_token_folder,
}


@pytest.fixture
def task(request, tmp_path):
    LAYOUTS[request.param](tmp_path / "own")
    return tasks.load(request.param, tmp_path / "own", **({"image_size": 16} if request.param == "images" else {}))


@pytest.mark.parametrize("task", LAYOUTS, indirect=True)
def test_a_step_of_training_runs_from_the_files(task):
    model = task.build(0)
    batch = next(task.batches(0, 0, 2))
    loss = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(batch[0]) == len(batch[1]) == task.batch_size
    quality = task.evaluate(model)
    assert 0 <= quality <= (1 if task.higher_is_better else 20)
    assert task.description == tasks.DESCRIPTIONS[task.name]
    assert task.steps % task.evaluate_every == 0


@pytest.mark.parametrize("task", LAYOUTS, indirect=True)
def test_batches_of_own_data_repeat(task):
    first, again = (list(islice(task.batches(1, 1, 2), 3)) for _ in range(2))
    for ours, theirs in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_cifar10_holds_the_five_batches_and_tests_on_the_sixth(tmp_path):
    folder = write_cifar10_binary(tmp_path)
    task = tasks.load("cifar10", tmp_path)
    assert task.samples == 20
    _, labels = task.draw(np.arange(20), np.random.default_rng(0))
    assert labels.tolist() == np.concatenate([cifar10_arrays(seed)[1] for seed in range(5)]).tolist()
    assert task.provenance["sha256"] == sha256(folder / f"{name}.bin" for name in CIFAR10_NAMES)

    class Label(torch.nn.Module):  # answers with the label of the test image that it is shown
        def __init__(self):
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(()))
            pixels, self.labels = cifar10_arrays(5)
            self.known = cifar_input(pixels.reshape(-1, 3, 32, 32))

        def forward(self, shown):
            which = [int(torch.nonzero((self.known == image).all(dim=(1, 2, 3)))[0]) for image in shown]
            return torch.eye(10)[self.labels[which]]

    assert task.evaluate(Label()) == 1


def test_the_binary_layout_is_preferred_and_pickles_must_be_the_published_ones(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in CIFAR10_NAMES:
        write_cifar10_pickle(folder / name)
    with pytest.raises(DataError, match="data_batch_1 is truncated or altered: its md5 is"):
        tasks.load("cifar10", tmp_path)
    write_cifar10_binary(tmp_path)
    assert tasks.load("cifar10", tmp_path).samples == 20


def test_a_missing_batch_is_named(tmp_path):
    folder = write_cifar10_binary(tmp_path)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(
        DataError, match=r"bin lacks data_batch_4.bin; CIFAR-10 is five data batches and a test batch\."
    ):
        tasks.load("cifar10", folder)


def test_inputs_are_standardised_per_channel():
    pixels = np.zeros((1, 3, 1, 2), dtype=np.uint8)
    pixels[..., 1] = 255
    expected = [[(0 - m) / d, (1 - m) / d] for m, d in ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))]
    torch.testing.assert_close(cifar_input(pixels)[0, :, 0], torch.tensor(expected))
    assert grey_input(pixels[:, :1]).flatten().tolist() == [0, 1]


def test_augmentation_crops_the_padded_image_and_mirrors_half():
    image = np.arange(1, 3 * 8 * 8 + 1, dtype=np.uint8).reshape(1, 3, 8, 8)
    padded = np.pad(image[0], ((0, 0), (4, 4), (4, 4)))
    crops = {padded[:, y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(9) for x in range(9)}
    flipped = {padded[:, y : y + 8, x : x + 8][..., ::-1].tobytes(): (y, x) for y in range(9) for x in range(9)}
    n = 4000
    result = crop_and_flip(np.repeat(image, n, axis=0), np.random.default_rng(0))
    corners = [(crops | flipped)[crop.tobytes()] for crop in result]
    mirrored = sum(crop.tobytes() in flipped for crop in result)
    assert set(corners) == set(crops.values())
    assert abs(mirrored - n / 2) < 5 * (n / 4) ** 0.5
    for axis in (0, 1):
        counts = np.bincount([corner[axis] for corner in corners], minlength=9)
        assert np.abs(counts - n / 9).max() < 5 * (n / 9) ** 0.5


def test_the_whole_test_set_is_evaluated_in_bounded_batches():
    sizes = [len(indices) for (indices,) in in_order(600, lambda indices: (indices,))]
    assert sizes == [256, 256, 88]
    test = Images(np.zeros((600, 1, 4, 4), np.uint8), np.arange(600) % 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    assert accuracy_on_all(test, grey_input, model) == 0.5


@pytest.mark.parametrize("folder", ["", "MNIST/raw", "mnist"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_mnist_is_found_in_the_folders_that_people_have(tmp_path, folder, gzipped):
    write_mnist(tmp_path / "own" / folder, gzipped)
    task = tasks.load("mnist", tmp_path / "own")
    assert task.samples == 12
    assert task.build(0)[-1].out_features == 3


def test_incomplete_or_mismatched_mnist_is_refused(tmp_path):
    folder = write_mnist(tmp_path / "own")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"No complete MNIST .*: expected t10k-labels-idx1-ubyte or .*\.gz; its four files"
    ):
        tasks.load("mnist", folder)
    other = write_mnist(tmp_path / "other", size=12)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DataError, match=r"do not belong together: their image sizes or classes differ\."):
        tasks.load("mnist", folder)


def test_image_folders_take_their_classes_and_size(tmp_path):
    task = tasks.load("images", write_image_folder(tmp_path), image_size=24)
    inputs, labels = task.draw(np.arange(task.samples), np.random.default_rng(0))
    assert inputs.shape == (6, 3, 24, 24)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]  # grass before sea
    green, blue = inputs[0], inputs[3]
    assert green[1].max() > green[2].max()
    assert blue[2].max() > blue[1].max()
    assert task.build(0)[-1].out_features == 2
    assert tasks.load("images", tmp_path).draw(np.array([0]), np.random.default_rng(0))[0].shape == (1, 3, 64, 64)


def test_validation_images_are_not_augmented_and_at_most_two_thousand(tmp_path, monkeypatch):
    write_image_folder(tmp_path)
    for number in range(1, 5):
        write_image(tmp_path / "val" / "sea" / f"{number}.png", colour=(0, 0, 255))
    monkeypatch.setattr("thriftgrad.tasks.own_images.EVALUATED_IMAGES", 3)
    task = tasks.load("images", tmp_path, image_size=8)
    assert task.provenance["evaluated on"] == "3 of 6 validation images"

    class Colour(torch.nn.Module):  # sees nothing but the colour; a padded crop would have black pixels
        def __init__(self):
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(()))

        def forward(self, shown):
            assert (shown == shown[:, :, :1, :1]).all()
            assert len(shown) == 3
            return shown[:, 1:, 0, 0]  # green, blue

    assert task.evaluate(Colour()) == 1


def test_image_folders_that_disagree_are_refused(tmp_path):
    write_image_folder(tmp_path)
    write_image(tmp_path / "val" / "sky" / "0.png")
    with pytest.raises(DataError, match=r"val must have the same classes; only one of them has sky\."):
        tasks.load("images", tmp_path)


@pytest.mark.parametrize("image_size", [0, 7, -64])
def test_images_cannot_be_smaller_than_the_network_shrinks_them(image_size):
    with pytest.raises(ValueError, match=f"image_size must be at least 8 pixels, not {image_size}"):
        images(None, image_size)


def test_tokens_take_all_shards_and_the_largest_token(tmp_path):
    write_llmc_tokens(tmp_path / "web_train_000001.bin", np.arange(513))
    write_llmc_tokens(tmp_path / "web_train_000002.bin", np.arange(300, 600))
    write_llmc_tokens(tmp_path / "web_val_000000.bin", np.arange(700))
    task = tasks.load("tokens", tmp_path)
    assert task.samples == 2 + 1
    assert task.draw(np.array([2]), np.random.default_rng(0))[0][0, 0] == 300
    assert task.provenance["vocabulary"] == "700"
    assert task.build(0).token_embedding.num_embeddings == 700


@pytest.mark.parametrize("short", ["train.bin", "val.bin"])
def test_tokens_need_one_window(tmp_path, short):
    folder = write_token_folder(tmp_path / "own")
    write_tokens(folder / short, np.arange(256))
    with pytest.raises(DataError, match=rf"{short} is too short: one window needs 257 tokens\."):
        tasks.load("tokens", folder)


def test_tokens_need_a_validation_file(tmp_path):
    write_tokens(tmp_path / "train.bin", np.arange(1000))
    with pytest.raises(
        DataError, match=r"No validation tokens .*: expected \*val\*\.bin; nanoGPT's prepare.py and llm.c's"
    ):
        tasks.load("tokens", tmp_path)


# -- the look-up --


def test_the_look_up_order(tmp_path, monkeypatch):
    find = partial(locate, what="x", expected=["x"], source="ask")
    for folder in ("given", "variable", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").touch()
    monkeypatch.chdir(tmp_path)
    assert find(None).resolve() == tmp_path / "data" / "x"
    monkeypatch.setenv("THRIFTGRAD_DATA", str(tmp_path / "variable"))
    assert find(None) == tmp_path / "variable" / "x"
    assert find(tmp_path / "given") == tmp_path / "given" / "x"
    # The first that is given is the only one searched.
    (tmp_path / "given" / "x").unlink()
    with pytest.raises(DataError, match=r"No x in the folder .*given: expected x; ask; name"):
        find(tmp_path / "given")
    (tmp_path / "variable" / "x").unlink()
    with pytest.raises(DataError, match=r"No x in the folder .*variable: expected x; ask"):
        find(None)
    monkeypatch.setenv("THRIFTGRAD_DATA", "")
    assert find(None).resolve() == tmp_path / "data" / "x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", r"with CIFAR-10: expected cifar-10-batches-bin/data_batch_1.bin or .*toronto\.edu"),
        (
            "mnist",
            r"with MNIST: expected train-images-idx3-ubyte or .*\.gz or MNIST/raw/.*fashion-mnist",
        ),
        (
            "images",
            r"with image folders: expected train/; it is laid out as train/<class>/\*\.jpg and",
        ),
        ("tokens", r"with training tokens: expected \*train\*\.bin; nanoGPT's prepare.py"),
    ],
)
def test_missing_data_says_what_is_expected_and_where_people_get_it(name, expected):
    with pytest.raises(
        DataError, match=rf"^There is no folder data {expected}.*name its folder with data_dir or THRIFT"
    ):
        tasks.load(name)
