"""The classifier in whose features samples are measured, and the measures with their reference values."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kexue.generative import (
    FeatureExtractor,
    ImageData,
    feature_extractor,
    features as features_module,
    load_images,
    measure_samples,
    reference_values,
)

pytest.importorskip("sklearn")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXUE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits")


@pytest.fixture(scope="module")
def of_digits(digits: ImageData) -> FeatureExtractor:
    return feature_extractor(digits)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Training of three steps, kept in a cache of its own."""
    monkeypatch.setattr(features_module, "_STEPS", 3)
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path))


@pytest.mark.slow
def test_classifier_of_digits_is_right(digits: ImageData, of_digits: FeatureExtractor) -> None:
    assert of_digits.accuracy > 0.96
    assert digits.test_labels is not None
    right = (of_digits.classify(digits.test).argmax(1) == digits.test_labels).double().mean()
    assert float(right) == of_digits.accuracy
    x = of_digits(digits.test)
    assert x.shape == (540, 32)
    assert not x.requires_grad
    torch.testing.assert_close(of_digits(digits.test[:1]), x[:1])
    assert of_digits(digits.test[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="images must be"):
        of_digits(digits.test.flatten(1))


@pytest.mark.slow
def test_reference_values_are_in_order_and_fall_with_n(digits: ImageData, of_digits: FeatureExtractor) -> None:
    values = reference_values(digits)
    assert list(values) == ["test", "noisy_test", "gaussian", "uniform"]
    assert values["test"] < values["noisy_test"] < values["gaussian"] < values["uniform"]
    assert 0.3 < values["test"] < 1.2
    assert values["gaussian"] > 4 * values["test"]
    assert values["uniform"] > 100
    assert reference_values(digits, n=200, extractor=of_digits)["test"] > values["test"]
    assert reference_values(digits) == values
    with pytest.raises(ValueError, match="540 test images"):
        reference_values(digits, n=541)


@pytest.mark.usefixtures("short")
def test_samples_that_are_test_images_have_the_reference_value(digits: ImageData) -> None:
    good = measure_samples(digits.test, digits)
    assert good.n == 540
    assert good.frechet_distance == good.reference["test"]
    assert min(good.precision, good.recall, good.coverage) > 0.9
    assert good.nearest_train_ratio == 1
    assert "1257 labelled images" in good.features


@pytest.mark.slow
def test_missing_digits_cost_recall_and_copies_are_seen(digits: ImageData) -> None:
    assert digits.test_labels is not None
    half = measure_samples(digits.test[digits.test_labels < 5], digits)
    good = measure_samples(digits.test[: half.n], digits)
    assert half.frechet_distance > 10 * good.frechet_distance
    assert half.precision > 0.9
    assert half.recall < 0.7
    copies = measure_samples(digits.train, digits)
    assert copies.nearest_train_ratio == 0
    constant = measure_samples(torch.zeros(300, 1, 8, 8), digits)
    assert math.isfinite(constant.frechet_distance)
    assert constant.frechet_distance > constant.reference["gaussian"]
    assert constant.recall < 0.05


@pytest.mark.usefixtures("short")
def test_bad_samples_are_refused(digits: ImageData) -> None:
    with pytest.raises(ValueError, match=r"at least 6 samples.*draw more samples"):
        measure_samples(digits.test[:5], digits)
    with pytest.raises(ValueError, match="images must be"):
        measure_samples(digits.test.flatten(1), digits)
    with pytest.raises(ValueError, match="NaN"):
        measure_samples(digits.test * math.nan, digits)


@pytest.mark.usefixtures("short")
def test_classifier_is_trained_once_and_again_after_damage(digits: ImageData, tmp_path: Path) -> None:
    calls: list[int] = []

    def progress(done: int, total: int | None) -> None:
        calls.append(done)

    first = feature_extractor(digits, progress=progress)
    assert calls == [1, 2, 3]
    assert torch.equal(feature_extractor("digits", progress=progress)(digits.test), first(digits.test))
    assert calls == [1, 2, 3]
    (path,) = (tmp_path / "features").iterdir()
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    path.write_bytes(path.read_bytes()[: size // 2])
    again = feature_extractor(digits, progress=progress)
    assert len(calls) == 6
    assert torch.equal(again(digits.test), first(digits.test))
    assert again.accuracy == first.accuracy
    other = ImageData(digits.train.flip(0), digits.train_labels, digits.test, None, digits.event_shape, 17)
    assert math.isnan(feature_extractor(other, progress=progress).accuracy)
    assert len(calls) == 9


@pytest.mark.usefixtures("short")
def test_a_cache_that_cannot_be_written_is_warned_about(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        feature_extractor(digits)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 18, 50), (3, 5, 5)])
def test_images_of_any_size(shape: tuple[int, ...]) -> None:
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(0))
    data = ImageData(x[:20], torch.arange(20) % 3, x[20:], torch.arange(10) % 3, shape, 256)
    extractor = feature_extractor(data)
    assert extractor(x).shape == (30, 32)
    assert extractor.classify(x).shape == (30, 3)


@pytest.mark.usefixtures("short")
def test_images_without_labels_get_clusters(digits: ImageData) -> None:
    bare = ImageData(digits.train, None, digits.test, None, digits.event_shape, 17)
    assert feature_extractor(bare).taught == "10 classes of 1257 images, clusters of their pixels by k-means"
    constant = ImageData(torch.zeros(20, 1, 8, 8), None, torch.zeros(9, 1, 8, 8), None, (1, 8, 8), 256)
    assert feature_extractor(constant).taught.startswith("1 classes")
    with pytest.warns(UserWarning, match="do not determine"):
        values = reference_values(constant)
    assert values["test"] == 0
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.slow
def test_clusters_order_the_reference_values_too(digits: ImageData) -> None:
    values = reference_values(ImageData(digits.train, None, digits.test, None, digits.event_shape, 17))
    assert values["test"] < values["noisy_test"] < values["gaussian"] < values["uniform"]
