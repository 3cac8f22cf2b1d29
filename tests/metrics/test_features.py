"""Features: what they map, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from genlab.config.build import build
from genlab.config.check import check, from_yaml
from genlab.config.compose import directory
from genlab.errors import ConfigError, DataError
from genlab.metrics.features import pretrained
from genlab.metrics.features.base import Features, HasClasses, NeedsFit, ready
from genlab.metrics.features.classifier import Classifier
from genlab.metrics.features.pixels import PixelComponents
from genlab.protocols import ImageSpec

FILES = sorted((directory() / "features").glob("*.yaml"))
#: Those whose packages cannot be had everywhere, and what their refusal says.
REMEDIES = {"inception": "pip install torch-fidelity", "dinov2": "pip install timm"}


class Stripes:
    """Images of two classes, striped along one side or the other."""

    spec = ImageSpec(1, 12, 12, classes=("rows", "columns"))

    def __init__(self, n: int = 400) -> None:
        random = np.random.default_rng(0)
        self._labels = random.integers(2, size=n)
        stripes = np.zeros((12, 12))
        stripes[::3] = 200
        x = np.where(self._labels[:, None, None] == 0, stripes, stripes.T)
        self._pixels = (x + random.integers(55, size=(n, 12, 12))).astype(np.uint8)[:, None]

    def pixels(self, split: str) -> Any:
        return self._pixels

    def labels(self, split: str) -> Any:
        return self._labels


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_makes_features_or_says_what_it_needs(file: Path) -> None:
    node = check(from_yaml(file.read_text(), str(file)), "features")
    if file.stem in REMEDIES:
        with pytest.raises(ConfigError, match=REMEDIES[file.stem]):
            build(node, "features")
        return
    module = build(node, "features")
    spec = ImageSpec(3, 20, 16, classes=("a", "b"))
    if isinstance(module, NeedsFit):
        module.prepare(spec)
    features = Features(module, spec)
    assert features.name.startswith(f"{file.stem}_")
    found = features(torch.zeros(3, *spec.shape, dtype=torch.uint8))
    assert found.shape == (3, features.dims) and found.dtype == np.float32


def test_a_classifier_tells_classes_and_its_accuracy() -> None:
    data = Stripes()
    features = ready(Classifier(steps=30, width=4, dims=8), data.spec, data, None)
    x = torch.from_numpy(data.pixels("train"))
    classes = features.classes(features(x))
    assert classes is not None
    assert (classes == data.labels("train")).mean() > 0.99
    assert features.accuracy is not None and features.accuracy > 0.99


def test_a_fit_is_made_once_and_is_the_same_again(tmp_path: Path) -> None:
    data = Stripes()
    made, again = (
        ready(Classifier(steps=5, width=4), data.spec, data, folder)
        for folder in (tmp_path, tmp_path / "elsewhere")
    )
    kept = ready(Classifier(steps=5, width=4), data.spec, None, tmp_path)  # with the data gone
    assert made.name == again.name == kept.name
    x = torch.from_numpy(data.pixels("train"))
    assert (made(x) == kept(x)).all()
    other = ready(Classifier(steps=6, width=4), data.spec, data, tmp_path)
    assert other.name != made.name


def test_pixel_components_are_the_eigenvectors_of_the_covariance() -> None:
    data = Stripes()
    features = ready(PixelComponents(dims=5), data.spec, data, None)
    x = data.pixels("train").reshape(400, -1) / 255
    values, _ = np.linalg.eigh(np.cov(x.T))
    found = features(torch.from_numpy(data.pixels("train")))
    np.testing.assert_allclose(np.cov(found.T), np.diag(values[:-6:-1]), atol=1e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)


def test_features_of_one_image_do_not_depend_on_the_others() -> None:
    data = Stripes(300)
    features = ready(PixelComponents(dims=5), data.spec, data, None)
    x = torch.from_numpy(data.pixels("train"))
    parts = np.concatenate([features(x[:128]), features(x[128:256]), features(x[256:])])
    assert (features(x) == parts).all()


def test_imagenet_tells_real_statistics_from_noise() -> None:
    """Its normalisations see what they saw in training: the network is put together rightly."""
    seen: list[float] = []
    module = pretrained.ImageNet(side=64)

    def compare(norm: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        alive = norm.running_var > 1e-3  # type: ignore[operator]
        ratio = given[0].var((0, 2, 3)) / norm.running_var  # type: ignore[operator]
        seen.append(float(ratio[alive].median()))

    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(compare)
    # noise with the spectrum of natural images, 1/f
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) + 1 / 64
    noise = np.random.default_rng(0).normal(size=(16, 3, 64, 64))
    x = np.fft.ifft2(np.fft.fft2(noise) / f).real
    x = 0.45 + 0.25 * x / x.std()
    with torch.inference_mode():
        found = module(torch.from_numpy(x.clip(0, 1)).float())
    assert found.shape == (16, 1280)
    assert len(seen) == 49
    assert min(seen[:12]) > 0.2 and max(seen[:12]) < 4


class Two(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


class Picture(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_any_module_that_maps_images_to_rows_will_do() -> None:
    features = Features(Two(), ImageSpec(1, 4, 4))
    assert features.name.startswith("two_") and features.dims == 2
    assert not isinstance(features.module, HasClasses)
    assert features.classes(np.zeros((3, 2))) is None


def test_modules_that_do_not_fit_are_refused_before_any_work() -> None:
    spec = ImageSpec(1, 4, 4)
    with pytest.raises(ConfigError, match=r"features=picture maps images .* features \(N, d\)"):
        Features(Picture(), spec)
    with pytest.raises(ConfigError, match="features=linear cannot read images of 1 x 4 x 4"):
        Features(nn.Linear(5, 2), spec)
    with pytest.raises(ConfigError, match="features=classifier: these images have no labels"):
        ready(Classifier(), spec, Stripes(), None)
    with pytest.raises(ConfigError, match="dims=64: images of 16 pixels have at most 16"):
        ready(PixelComponents(), spec, Stripes(), None)
    with pytest.raises(ConfigError, match="which are gone"):
        ready(PixelComponents(dims=4), spec, None, None)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (torch.full((3, 1, 4, 4), torch.nan), "image 40 holds values that are not finite"),
        (torch.full((3, 1, 4, 4), 200.0), r"images from 200 to 200: .* in \[0, 1\]"),
        (torch.zeros(3, 3, 4, 4), "images of 3 x 4 x 4 cannot be compared with those of 1 x 4 x 4"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(images: Tensor, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        Features(Two(), ImageSpec(1, 4, 4))(images, first=40)


def test_a_damaged_fit_is_named(tmp_path: Path) -> None:
    data = Stripes()
    ready(PixelComponents(dims=4), data.spec, data, tmp_path)
    (path,) = tmp_path.glob("pixels-*.safetensors")
    whole = path.read_bytes()
    diverged = {name: torch.full_like(weight, torch.nan) for name, weight in load(whole).items()}
    for content in (whole[:100], save(diverged)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read .* remove it, and it is made again"):
            ready(PixelComponents(dims=4), data.spec, data, tmp_path)
