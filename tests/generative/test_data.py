"""Images by name, from idx files and from folders; what is refused."""

import gzip
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kexue.errors import DataError
from kexue.generative import ImageData, load_images

sklearn_datasets = pytest.importorskip("sklearn.datasets")
Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def write_idx(path: Path, values: Any, *, kind: int = 8, announced: tuple[int, ...] | None = None) -> Path:
    shape = announced or values.shape
    content = struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, values.ndim, *shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_images(folder: Path, n: int, *, size: tuple[int, ...] = (8, 12), suffix: str = ".png") -> Any:
    """Write n random images (height, width, ...) and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (n, *size), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}")
    return images


def levels(x: torch.Tensor, of: int = 256) -> Any:
    """The integers that the pixels in [-1, 1] stand for."""
    return ((x + 1) * (of - 1) / 2).round().to(torch.int64).numpy()


def as_multiset(images: Any) -> Counter[bytes]:
    return Counter(np.asarray(image, dtype=np.uint8).tobytes() for image in images)


def test_digits_are_those_of_scikit_learn_in_both_parts() -> None:
    digits = load_images("digits")
    bunch = sklearn_datasets.load_digits()
    assert (len(digits.train), len(digits.test), digits.event_shape, digits.levels) == (1257, 540, (1, 8, 8), 17)
    both = np.concatenate([levels(digits.train, 17), levels(digits.test, 17)])
    assert as_multiset(both) == as_multiset(bunch.images)
    assert torch.equal(digits.train * 8 + 8, torch.from_numpy(levels(digits.train, 17)).float())  # x = u / 8 - 1
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    for label in range(10):
        share = float((digits.test_labels == label).sum()) / (bunch.target == label).sum()
        assert abs(share - 0.3) < 0.01
    by_image = {
        image.tobytes(): label for image, label in zip(bunch.images.astype(np.uint8), bunch.target, strict=True)
    }
    labels = [by_image[image.astype(np.uint8).tobytes()] for image in levels(digits.test, 17)]
    assert labels == digits.test_labels.tolist()
    assert torch.equal(load_images("digits").test, digits.test)
    assert digits.num_classes == 10


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_of_both_parts(tmp_path: Path, suffix: str) -> None:
    train, test = (RNG.integers(0, 256, (n, 6, 5), dtype=np.uint8) for n in (7, 3))
    train[0, 0, 0], train[0, 0, 1] = 0, 255
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", train)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", test)
    data = load_images(tmp_path)
    assert data.event_shape == (1, 6, 5)
    assert (levels(data.train)[:, 0] == train).all()
    assert (levels(data.test)[:, 0] == test).all()
    assert data.train[0, 0, 0, :2].tolist() == [-1, 1]
    assert data.train_labels is None
    assert data.num_classes is None
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(7))
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", np.arange(3))
    data = load_images(tmp_path)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == list(range(7))


def test_named_sets_are_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXUE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="fashion_mnist does not exist"):
        load_images("fashion-mnist")
    folder = tmp_path / "images" / "fashion_mnist"
    folder.mkdir(parents=True)
    labels = np.repeat(np.arange(4), 10)
    images = np.broadcast_to(labels[:, None, None], (40, 4, 4))
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    data = load_images("fashion-mnist")
    assert data.test_labels is not None
    assert sorted(data.test_labels.tolist()) == [0, 1, 2, 3]  # a tenth of each class
    assert (levels(data.test)[:, 0, 0, 0] == data.test_labels.numpy()).all()
    monkeypatch.delenv("KEXUE_DATA")
    with pytest.raises(DataError, match=r"KEXUE_DATA is not set.*images/mnist"):
        load_images("mnist")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((2, 4, 4)), {"announced": (3, 4, 4)}, "announces 3 x 4 x 4 bytes, the file has 32"),
        (np.zeros((2, 4)), {}, "2 dimensions, expected"),
        (np.zeros((2, 4, 4)), {"kind": 13}, "type 0x0d"),
        (np.zeros((0, 4, 4)), {}, "0 x 4 x 4 pixels, expected at least 1 image"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, values: Any, options: dict[str, Any], message: str) -> None:
    path = write_idx(tmp_path / "train-images-idx3-ubyte", values, **options)
    with pytest.raises(DataError, match=message) as error:
        load_images(tmp_path)
    assert str(path) in str(error.value)


def test_other_faults_of_idx_files(tmp_path: Path) -> None:
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(b"no idx file")
    with pytest.raises(DataError, match="not an idx file"):
        load_images(tmp_path)
    write_idx(images, np.zeros((9, 4, 4)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(8))
    with pytest.raises(DataError, match="8 labels, expected 9"):
        load_images(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(9))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((2, 5, 4)))
    with pytest.raises(DataError, match="different sizes"):
        load_images(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0]))
    with pytest.raises(DataError, match="ends within its header"):
        load_images(tmp_path)
    images.write_bytes(images.read_bytes()[:-12])
    with pytest.raises(DataError, match="damaged or cut short"):
        load_images(tmp_path)


def test_folder_of_colour_images(tmp_path: Path) -> None:
    images = write_images(tmp_path, 20, size=(8, 12, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    data = load_images(tmp_path)
    assert data.event_shape == (3, 8, 12)
    assert (len(data.train), len(data.test), data.levels) == (18, 2, 256)
    assert data.train_labels is None
    both = np.concatenate([levels(data.train), levels(data.test)]).transpose(0, 2, 3, 1)
    assert as_multiset(both) == as_multiset(images)


def test_sub_folders_are_labels_and_grey_images_have_one_channel(tmp_path: Path) -> None:
    for number, name in enumerate(("ants", "bees", "cats")):
        write_images(tmp_path / name, 10, size=(4, 4), suffix=".bmp")
        for path in (tmp_path / name).iterdir():
            Image.new("RGB", (4, 4), (number,) * 3).save(path)
    data = load_images(str(tmp_path))
    assert data.event_shape == (1, 4, 4)  # although the files are RGB
    assert data.classes == ("ants", "bees", "cats")
    assert data.test_labels is not None
    assert (levels(data.test)[:, 0, 0, 0] == data.test_labels.numpy()).all()
    assert sorted(data.test_labels.tolist()) == [0, 1, 2]


def test_folders_train_and_test_are_the_parts(tmp_path: Path) -> None:
    train, test = write_images(tmp_path / "train", 3), write_images(tmp_path / "test", 2)
    data = load_images(tmp_path)
    assert (levels(data.train)[:, 0] == train).all()
    assert (levels(data.test)[:, 0] == test).all()
    write_images(tmp_path / "labelled" / "train" / "a", 2)
    write_images(tmp_path / "labelled" / "test" / "b", 2)
    with pytest.raises(DataError, match="different sub-folders: a, b"):
        load_images(tmp_path / "labelled")


def test_images_beside_the_parts_are_not_left_out(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / part, 2)
    (tmp_path / "notes").mkdir()
    assert len(load_images(tmp_path).train) == 2
    write_images(tmp_path / "val" / "cats", 1)
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match=r"beside the parts train and test, .* not read: 000\.png, val"):
        load_images(tmp_path)


@pytest.mark.parametrize("names", [("Train", "Test"), ("train", "val"), ("training", "validation", "test")])
def test_names_of_parts_are_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_images(tmp_path / name / "cats", 2)
    with pytest.raises(DataError, match=r"named as parts of a set, not as labels.*Name the two parts train and test"):
        load_images(tmp_path)


def test_a_train_may_be_a_label_among_others(tmp_path: Path) -> None:
    for name in ("boat", "car", "train"):
        write_images(tmp_path / name, 2)
    assert load_images(tmp_path).classes == ("boat", "car", "train")


def test_grey_and_coloured_parts_have_three_channels_both(tmp_path: Path) -> None:
    grey, coloured = (
        write_images(tmp_path / "train", 2, size=(4, 4)),
        write_images(tmp_path / "test", 2, size=(4, 4, 3)),
    )
    data = load_images(tmp_path)
    assert data.event_shape == (3, 4, 4)
    assert (levels(data.train) == grey[:, None]).all()
    assert (levels(data.test) == np.moveaxis(coloured, -1, 1)).all()


def test_a_name_is_that_of_a_set_whatever_folders_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    for name in ("digits", "mnist"):
        write_images(tmp_path / name, 3)
        assert len(load_images(f"./{name}").train) == 2
    assert len(load_images("digits").train) == 1257
    with pytest.raises(DataError, match=r"such as \./mnist"):
        load_images("mnist")
    write_images(tmp_path, 3)
    with pytest.raises(DataError, match="'' is neither the name of a set nor a folder"):
        load_images("")


def test_transparency_rotation_and_palettes(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "a.png")
    turned = Image.new("RGB", (4, 2), (0, 128, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by a quarter
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGB", (2, 4), (0, 0, 255)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.gif")
    data = load_images(tmp_path)
    assert data.event_shape == (3, 4, 2)
    colours = {tuple(image[:, 0, 0]) for image in np.concatenate([levels(data.train), levels(data.test)])}
    assert colours == {(255, 255, 255), (0, 128, 0), (0, 0, 255)}


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write_images(tmp_path, 2, size=(8, 8))
    Image.new("L", (10, 6), 77).save(tmp_path / "z.png")
    with pytest.raises(DataError, match=r"z\.png: the image is 6 x 10 pixels.*expected 8 x 8.*000\.png.*image_size=8"):
        load_images(tmp_path)
    data = load_images(tmp_path, image_size=(4, 8))
    assert data.event_shape == (1, 4, 8)
    assert any((image == 77).all() for image in np.concatenate([levels(data.train), levels(data.test)]))
    assert load_images("digits", image_size=12).event_shape == (1, 12, 12)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither the name of a set nor a folder"):
        load_images("no-such-set")
    with pytest.raises(DataError, match="neither images nor sub-folders"):
        load_images(tmp_path)
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match="at least 2"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_images(tmp_path / "000.png")
    write_images(tmp_path / "cats", 1)
    with pytest.raises(DataError, match=r"images .* and folders of images"):
        load_images(tmp_path)
    for size in (0, 1.5, (8, 8.0), True):
        with pytest.raises(ValueError, match="image_size must be"):
            load_images("digits", image_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("shallow", ["cats", "."])
def test_images_too_deep_are_refused_rather_than_left_out(tmp_path: Path, shallow: str) -> None:
    write_images(tmp_path / shallow, 3)
    (tmp_path / "dogs" / "empty").mkdir(parents=True)
    assert len(load_images(tmp_path).train) == 2
    write_images(tmp_path / "dogs" / "small", 1)
    with pytest.raises(DataError, match=r"small: .* sub-folder of a sub-folder"):
        load_images(tmp_path)


def test_files_that_are_not_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "000.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as an image"):
        load_images(tmp_path)
    broken.unlink()
    Image.fromarray(np.full((8, 12), 60_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: the image has more than 8 bits"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.ppm", b"P6 4x 4 255\n" + bytes(48)), ("a.xbm", b"#define im_width 1x\n#define im_height 2\n{ 0x01 };")],
)
def test_decoders_of_damaged_files_may_raise_anything(tmp_path: Path, name: str, content: bytes) -> None:
    write_images(tmp_path, 3)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot be read as an image"):
        load_images(tmp_path)


def test_image_data_checks_its_images() -> None:
    x = torch.zeros(3, 1, 2, 2)
    assert ImageData(x, None, x, None, (1, 2, 2), 256).num_classes is None
    with pytest.raises(ValueError, match=r"\[-1, 1\], got .* to 255"):
        ImageData(x + 255, None, x, None, (1, 2, 2), 256)
    with pytest.raises(ValueError, match=r"test must be floats in \[-1, 1\], got .*nan"):
        ImageData(x, None, x / 0, None, (1, 2, 2), 256)
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        ImageData(x.long(), None, x, None, (1, 2, 2), 256)
    with pytest.raises(ValueError, match="train must be"):
        ImageData(x[0], None, x, None, (1, 2, 2), 256)
    for wrong in (torch.zeros(3), torch.full((3,), torch.nan), [0, 1, 2]):
        with pytest.raises(TypeError, match="train_labels must be a tensor of integer class numbers"):
            ImageData(x, wrong, x, None, (1, 2, 2), 256)  # type: ignore[arg-type]
    for numbers, classes in ((torch.tensor([0, -1, 1]), ()), (torch.tensor([0, 2, 1]), ("a", "b"))):
        with pytest.raises(ValueError, match=r"train_labels must lie in \[0, 2\)"):
            ImageData(x, numbers, x, None, (1, 2, 2), 256, classes)
    with pytest.raises(ValueError, match="levels must be a whole number >= 2, got 1"):
        ImageData(x, None, x, None, (1, 2, 2), 1)
    with pytest.raises(ValueError, match=r"test_files must be \d names, or none, got 1"):
        ImageData(x, None, x, None, (1, 2, 2), 256, test_files=("0.png",))
    with pytest.raises(ValueError, match="channels, height, width"):
        ImageData(x[:, 0], None, x[:, 0], None, (2, 2), 256)
    with pytest.raises(ValueError, match=r"train_labels must be \(3,\)"):
        ImageData(x, torch.zeros(2).long(), x, None, (1, 2, 2), 256)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("mnist", 60_000), ("fashion-mnist", 54_000)])
def test_published_sets(name: str, least: int) -> None:
    data = load_images(name)
    assert data.event_shape == (1, 28, 28)
    assert len(data.train) >= least
    assert data.num_classes == 10
