"""The image readers return what was written, and refuse corrupt, foreign and hostile files in one sentence."""

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks.files import cifar10_arrays, idx, write_cifar10_binary, write_cifar10_pickle, write_image, write_mnist
from thriftgrad.tasks.image_readers import (
    list_images,
    load_arrays,
    read_cifar10_binary,
    read_cifar10_pickle,
    read_idx,
    read_idx_images,
    read_image,
)
from thriftgrad.tasks.lookup import DataError

# -- CIFAR-10 --


def test_both_layouts_of_cifar10_give_the_same_images(tmp_path):
    pixels, labels = cifar10_arrays(0)
    binary = read_cifar10_binary(write_cifar10_binary(tmp_path) / "data_batch_1.bin")
    pickled = read_cifar10_pickle(write_cifar10_pickle(tmp_path / "data_batch_1"), checksums={})
    for images in (binary, pickled):
        assert np.array_equal(images.pixels, pixels.reshape(-1, 3, 32, 32))
        assert np.array_equal(images.labels, labels)
        assert images.labels.dtype == np.int64


def test_the_red_plane_comes_first(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes([7]) + bytes([255]) * 1024 + bytes(2048))
    images = read_cifar10_binary(path)
    assert images.pixels.mean(axis=(0, 2, 3)).tolist() == [255, 0, 0]
    assert images.labels.tolist() == [7]


@pytest.mark.parametrize("cut", [1, 3072, 4 * 3073])
def test_a_truncated_binary_batch_is_refused(tmp_path, cut):
    path = write_cifar10_binary(tmp_path) / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"truncated or no CIFAR-10 file: its \d+ bytes are not a whole number of 3073"):
        read_cifar10_binary(path)


def test_labels_above_nine_are_refused(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match="CIFAR-10's labels are 0 to 9, and it has 10 to 10"):
        read_cifar10_binary(path)


def test_a_pickle_in_the_published_form_is_read(tmp_path):
    # Python 2 and numpy 1 wrote the published files: text strings for bytes, numpy.core for the array's constructor.
    pixels = np.arange(3072, dtype=np.uint8).tobytes()
    published = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
        b"\x00tb\x89T\x00\x0c\x00\x00" + pixels + b"tbU\x06labelsq\x08]q\x09K\x06au."
    )
    path = tmp_path / "data_batch_1"
    path.write_bytes(published)
    images = read_cifar10_pickle(path, checksums={})
    assert images.pixels.tobytes() == pixels
    assert images.labels.tolist() == [6]


def test_a_pickle_that_is_not_the_published_one_is_refused_unopened(tmp_path):
    path = write_cifar10_pickle(tmp_path / "data_batch_3")
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(
        DataError, match=rf"its md5 is {digest}, the published file's 54ebc095f3ab1f0389bbae665268c751\."
    ):
        read_cifar10_pickle(path)


class Hostile:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_hostile_pickle_is_refused_without_running_it(tmp_path):
    mark = tmp_path / "executed"
    path = write_cifar10_pickle(tmp_path / "data_batch_1", batch_label=Hostile(mark))
    pickle.loads(path.read_bytes())
    assert mark.exists()  # an ordinary unpickler runs it
    mark.unlink()
    with pytest.raises(DataError, match=r"data_batch_1 is corrupt or not a pickle of plain arrays: it asks for \w+"):
        read_cifar10_pickle(path, checksums={})
    assert not mark.exists()


@pytest.mark.parametrize(
    "asked",
    [
        "os\nsystem",
        "builtins\neval",
        "numpy\nload",
        "numpy\nfromfile",
        "numpy._core.multiarray\nfromfile",
        "numpy\nndarray.tofile",
    ],
)
def test_only_the_constructors_of_arrays_are_found(tmp_path, asked):
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x03c" + asked.encode() + b"\n.")
    with pytest.raises(DataError, match="it asks for " + asked.replace("\n", r"\.")):
        load_arrays(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x03}", b"not a pickle", b"\x80\x03(K\x01", b"\x80\x63."])
def test_corrupt_pickles_are_refused(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1 is corrupt or not a pickle of plain arrays: .+\."):
        load_arrays(path)


def test_truncated_pickles_are_refused_at_every_length(tmp_path):
    path = write_cifar10_pickle(tmp_path / "data_batch_1")
    content = path.read_bytes()
    for length in (*range(1, 200, 7), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="corrupt or not a pickle"):
            load_arrays(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, r"expected pixels uint8\[n, 3072\] with n labels, got object\[\] with 4 labels"),
        ({"data": np.zeros((4, 3072))}, r"got float64\[4, 3072\] with 4 labels"),
        ({"data": np.zeros((4, 3071), np.uint8)}, r"got uint8\[4, 3071\] with 4 labels"),
        ({"labels": [1, 2, 3]}, r"got uint8\[4, 3072\] with 3 labels"),
        ({"labels": [1, 2, 3, -1]}, "labels are 0 to 9, and it has -1 to 3"),
        ({"labels": "cats"}, r"it lacks the entries b'data' and b'labels'\."),
        ({"labels": [10**30] * 4}, "it lacks the entries"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, changed, message):
    path = write_cifar10_pickle(tmp_path / "data_batch_1", **changed)
    with pytest.raises(DataError, match=message):
        read_cifar10_pickle(path, checksums={})


def test_a_pickle_without_entries_is_refused(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="data_batch_1 is no CIFAR-10 batch: it lacks the entries"):
        read_cifar10_pickle(path, checksums={})


# -- IDX --


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files_give_back_what_was_written(tmp_path, gzipped):
    values = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / ("values.gz" if gzipped else "values")
    path.write_bytes(gzip.compress(idx(values)) if gzipped else idx(values))
    assert np.array_equal(read_idx(path, dimensions=3), values)


def test_idx_magic_numbers_are_those_of_mnist(tmp_path):
    assert idx(np.zeros((1, 1, 1)))[:4] == (2051).to_bytes(4, "big")
    assert idx(np.zeros(1))[:4] == (2049).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros(3)), r"values is no IDX file of bytes in 3 dimensions: magic 2049, not 2051\."),
        (idx(np.zeros((1, 2, 2)), magic=0x0D03), "magic 3331, not 2051"),
        (b"", "magic 0, not 2051"),
        (idx(np.zeros((1, 2, 2)))[:10], "no IDX file of bytes in 3 dimensions"),
        (idx(np.zeros((1, 2, 2)))[:-1], r"truncated or corrupt: its header states \[1, 2, 2\], it holds 3 values\."),
        (idx(np.zeros((1, 2, 2))) + b"x", r"its header states \[1, 2, 2\], it holds 5 values\."),
        (
            struct.pack(">4I", 2051, *[2**32 - 1] * 3),
            r"header states \[4294967295, 4294967295, 4294967295\], it holds 0",
        ),
    ],
)
def test_corrupt_idx_files_are_refused(tmp_path, content, message):
    path = tmp_path / "values"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"x" + b[1:], lambda b: b[:12] + b"\xff" * 6 + b[18:]])
def test_corrupt_gzip_files_are_refused(tmp_path, damage):
    path = tmp_path / "values.gz"
    path.write_bytes(damage(gzip.compress(idx(np.arange(64).reshape(1, 8, 8)))))
    with pytest.raises(DataError, match=r"values.gz is a truncated or corrupt gzip file: .+\."):
        read_idx(path, dimensions=3)


def test_idx_images_have_one_channel_and_their_labels(tmp_path):
    folder = write_mnist(tmp_path / "raw")
    images = read_idx_images(folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte")
    assert images.pixels.shape == (12, 1, 8, 8)
    assert images.labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        ((3, 8, 8), 2, r"images has 3 images and .*labels has 2 labels; they must match\."),
        ((0, 8, 8), 0, "images has 0 images"),
        ((2, 8, 4), 2, r"images has images of 8 x 4 pixels; squares are expected\."),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(tmp_path, pixels, labels, message):
    (tmp_path / "images").write_bytes(idx(np.zeros(pixels)))
    (tmp_path / "labels").write_bytes(idx(np.zeros(labels)))
    with pytest.raises(DataError, match=message):
        read_idx_images(tmp_path / "images", tmp_path / "labels")


# -- folders of images --


def test_classes_and_files_are_sorted_by_name(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x.jpeg", "a/notes.txt"):
        write_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    files = list_images(tmp_path)
    assert files.classes == ("a", "b")
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == ["a/x.jpeg", "b/10.JPG", "b/2.png"]
    assert files.labels.tolist() == [0, 1, 1]


def test_folders_without_classes_or_images_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train has no class folders; expected .*train/<class>/\*\.jpg, \*\.jpeg or"):
        list_images(tmp_path / "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cat has no images; expected \*\.jpg, \*\.jpeg or \*\.png\."):
        list_images(tmp_path / "train")


def test_an_image_is_its_central_square_in_rgb(tmp_path):
    from PIL import Image

    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = (255, 128, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png", size=10)
    assert pixels.shape == (3, 10, 10)
    assert pixels.dtype == np.uint8
    assert [set(plane.flatten().tolist()) for plane in pixels] == [{255}, {128}, {0}]


def test_images_of_any_shape_are_resized(tmp_path):
    for shape in ((7, 7), (200, 30), (30, 200), (1, 1)):
        pixels = read_image(write_image(tmp_path / "a.png", shape, (9, 8, 7)), size=16)
        assert pixels.shape == (3, 16, 16)
        assert (pixels == np.array([9, 8, 7])[:, None, None]).all()


def test_grey_and_transparent_images_become_rgb(tmp_path):
    from PIL import Image

    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 128)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "grey.png", 9).mean(axis=(1, 2)).tolist() == [77, 77, 77]
    assert read_image(tmp_path / "clear.png", 9).mean(axis=(1, 2)).tolist() == [1, 2, 3]


def test_unreadable_images_are_refused(tmp_path):
    path = write_image(tmp_path / "a.png", size=(64, 64))
    content = path.read_bytes()
    for damaged in (b"", b"not an image", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.png is not a readable image: .+\."):
            read_image(path, 8)


def test_images_need_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'Folders of images need pillow; run pip install "thriftgrad\[data\]"\.'):
        read_image(tmp_path / "a.png", 8)
