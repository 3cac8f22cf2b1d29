"""Pictures of a training: which model, images and moment each of them shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.axes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from trained_media import SMALL_DDPM, SMALL_VAE, decoded, differ, loaded, train, validation_images

from genlab.callbacks.base import first_images
from genlab.diffusion.curves import BoundCurves
from genlab.diffusion.model import DDPM
from genlab.media import pictures
from genlab.metrics.distances import energy_distance
from genlab.runs.run import Run
from genlab.seeding import ImageNoise
from genlab.tracking.record import RecordLogger
from genlab.vae.model import VAE

Pixels = npt.NDArray[np.uint8]

#: The picture's cells, the gap between them and the margin around them, in pixels.
CELL, GAP, MARGIN = 56, 2, 6


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four epochs with averaged weights at KL weight 0."""
    return train(
        tmp_path_factory.mktemp("vae"),
        *SMALL_VAE,
        *("model.kl_weight=0", "trainer.max_epochs=4", "ema_decay=0.9", "model.optimizer.lr=0.02"),
        *("evaluate=last", "callbacks=pictures", "callbacks.latent_map=null"),
        *("callbacks.reconstructions.images=5", "callbacks.reconstructions.every_n_epochs=2"),
        *("callbacks.samples.images=4", "callbacks.samples.every_n_epochs=3"),
        *("callbacks.interpolation.images=2", "callbacks.interpolation.steps=5"),
        *("callbacks.traversal.images=20", "callbacks.traversal.steps=4"),
        "callbacks.traversal.extent=2",
    )


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        tmp_path_factory.mktemp("ddpm"),
        *SMALL_DDPM,
        *("evaluate=last", "callbacks=pictures", "callbacks.bound=null"),
        *("callbacks.samples.images=4", "callbacks.forward.images=3"),
        *("callbacks.trajectory.images=2", "callbacks.trajectory.steps=10"),
    )


def picture(trained: Run, name: str) -> Pixels:
    return pictures.read_png(trained.pictures / f"{name}.png")


def cut(shown: Pixels, rows: int, columns: int, left: int = MARGIN) -> Pixels:
    """The images (rows, columns, 28, 28) of a grid that begins `left` pixels from the left."""
    top = len(shown) - MARGIN - rows * (CELL + GAP) + GAP
    return np.stack(
        [
            np.stack(
                [
                    shown[y : y + CELL : 2, x : x + CELL : 2, 0]
                    for x in (left + j * (CELL + GAP) for j in range(columns))
                ]
            )
            for y in (top + i * (CELL + GAP) for i in range(rows))
        ]
    )


def beside_labels(shown: Pixels, rows: int, columns: int) -> Pixels:
    """The images of a grid with labels on its left, which is wider than its caption."""
    left = shown.shape[1] - MARGIN - columns * (CELL + GAP) + GAP
    return cut(shown, rows, columns, left)


def assert_same(a: Pixels, b: Pixels) -> None:
    assert a.shape == b.shape
    assert differ(a, b) <= 1


def test_pictures_are_drawn_every_n_epochs_and_in_the_test_and_carry_their_step(vae: Run) -> None:
    found = {path.stem for path in vae.pictures.iterdir()}
    assert found == {
        *("reconstructions-step0000008", "reconstructions-step0000016", "reconstructions-final"),
        *("samples-step0000012", "samples-final"),
        *("samples_aggregate-step0000012", "samples_aggregate-final"),
        *("interpolation-final", "traversal-final"),
    }


def test_loggers_that_take_pictures_get_each_with_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, str, int]] = []
    monkeypatch.setattr(
        RecordLogger,
        "log_image",
        lambda self, key, path, step: given.append((key, path.name, step)),
        raising=False,
    )
    only = ["callbacks=pictures", "callbacks.reconstructions.every_n_epochs=1"]
    only += [f"callbacks.{name}=null" for name in ("samples", "interpolation", "traversal")]
    train(tmp_path, *SMALL_VAE, *only, "callbacks.latent_map=null", "trainer.max_epochs=2")
    key = "pictures/reconstructions"
    assert given == [
        (key, "reconstructions-step0000004.png", 4),
        (key, "reconstructions-step0000008.png", 8),
        (key, "reconstructions-final.png", 8),
    ]


def test_reconstructions_show_the_input_above_the_output(vae: Run) -> None:
    model, data = loaded(vae.path)
    x = validation_images(data)(5)
    expected = np.stack([decoded(model, x), decoded(model, model.reconstruct(x))])
    assert_same(beside_labels(picture(vae, "reconstructions-final"), 2, 5), expected)


def test_a_picture_in_training_is_of_the_averaged_weights(vae: Run) -> None:
    saved = torch.load(vae.checkpoints / "last.ckpt", weights_only=True)
    model, data = loaded(vae.path)
    x = validation_images(data)(5)
    averaged = decoded(model, model.reconstruct(x))
    shown = beside_labels(picture(vae, "reconstructions-step0000016"), 2, 5)
    assert_same(shown[1], averaged)
    raw_weights = {n.removeprefix("model."): value for n, value in saved["raw_weights"].items()}
    assert not model.load_state_dict(raw_weights, strict=False).unexpected_keys
    raw = decoded(model, model.reconstruct(x))
    assert (
        np.abs(raw.astype(int) - averaged.astype(int)).max() > 5
    )  # so that the two are told apart


def test_samples_are_from_the_prior_and_at_kl_weight_0_also_from_the_aggregate(
    vae: Run, tmp_path: Path
) -> None:
    model, data = loaded(vae.path)
    assert isinstance(model, VAE)
    aggregate = model.sample_aggregate(validation_images(data)(1000), 4, 0)
    for name, images in (("samples", model.sample(4, 0)), ("samples_aggregate", aggregate)):
        expected = decoded(model, images).reshape(2, 2, 28, 28)
        assert_same(cut(picture(vae, f"{name}-final"), 2, 2), expected)

    only = [f"callbacks.{n}=null" for n in ("reconstructions", "interpolation", "traversal")]
    tied = train(
        tmp_path,
        *SMALL_VAE,
        *("model.kl_weight=0.01", "callbacks=pictures", "callbacks.latent_map=null", *only),
    )
    assert {path.stem for path in tied.pictures.iterdir()} == {"samples-final"}


def test_interpolations_go_from_one_reconstruction_to_another(vae: Run) -> None:
    model, data = loaded(vae.path)
    ends = decoded(model, model.reconstruct(validation_images(data)(4)))
    strips = cut(picture(vae, "interpolation-final"), 2, 5)
    assert_same(strips[:, 0], ends[:2])
    assert_same(strips[:, -1], ends[2:])
    with torch.no_grad():
        z = model.encode(validation_images(data)(4)).loc
        middle = model.decode((z[:2] + z[2:]) / 2).mean
    assert_same(strips[:, 2], decoded(model, middle))


def test_traversals_order_the_latents_by_falling_kl(vae: Run) -> None:
    model, data = loaded(vae.path)
    with torch.no_grad():
        q = model.encode(first_images(data, "test", 1000))
        z = model.encode(validation_images(data)(1)).loc
    kl = 0.5 * (q.loc.square() + q.log_var.exp() - 1 - q.log_var).mean(0)
    order = sorted(range(20), key=lambda d: -float(kl[d]))
    table = z.repeat(20, 4, 1)
    for row, d in enumerate(order):
        table[row, :, d] = torch.linspace(-2, 2, 4)
    with torch.no_grad():
        expected = decoded(model, model.decode(table.flatten(0, 1)).mean)
    shown = picture(vae, "traversal-final")
    assert_same(beside_labels(shown, 20, 4), expected.reshape(20, 4, 28, 28))
    # the labels name the same latents in the same order
    labels = [f"z{d}: {kl[d]:.2f} nats" for d in order]
    labelled = pictures.grid(expected, columns=4, row_labels=labels)
    assert_same(shown[-len(labelled) :, : labelled.shape[1], 0], labelled)


def test_the_latent_map_has_the_means_on_two_axes_in_the_colour_of_their_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str, npt.NDArray[np.float64]]] = []
    scatter = matplotlib.axes.Axes.scatter

    def recorded(self: Any, x: Any, y: Any, *args: Any, **options: Any) -> Any:
        points = np.stack([np.asarray(x, float), np.asarray(y, float)], 1)
        drawn.append((str(options["label"]), str(options["color"]), points))
        return scatter(self, x, y, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "scatter", recorded)
    others = ("reconstructions", "samples", "interpolation", "traversal")
    only = ["callbacks=pictures", *(f"callbacks.{name}=null" for name in others)]
    trained = train(tmp_path, *SMALL_VAE, *only, "evaluate=last", "callbacks.latent_map.images=30")
    assert {path.stem for path in trained.pictures.iterdir()} == {"latent_map-final"}

    model, data = loaded(trained.path)
    with torch.no_grad():
        means = model.encode(first_images(data, "test", 30)).loc.double().numpy()
    centred = means - means.mean(0)
    expected = centred @ np.linalg.svd(centred)[2][:2].T
    labels = np.array([model.spec.classes[i] for i in data.labels("test")[:30]])
    assert sorted(name for name, *_ in drawn) == sorted(set(labels))
    assert len({colour for _, colour, _ in drawn}) == len(drawn)
    at = np.empty_like(expected)
    for name, _, points in drawn:
        at[labels == name] = points
    signs = np.sign((at * expected).sum(0))  # a principal axis has no sign
    np.testing.assert_allclose(at, signs * expected, atol=1e-4)


def test_noise_takes_validation_images_over_from_left_to_right(ddpm: Run) -> None:
    model, data = loaded(ddpm.path)
    shown = cut(picture(ddpm, "forward-final"), 3, 11)
    assert_same(shown[:, 0], decoded(model, validation_images(data)(3)))
    for row in shown.astype(float).reshape(3, 11, -1):
        alike = [np.corrcoef(row[0], image)[0, 1] for image in row]
        assert alike[1] > 0.9 and abs(alike[-1]) < 0.15
        assert np.all(np.diff(alike) < 0.03)


def test_a_trajectory_goes_from_noise_above_to_the_sample_below(ddpm: Run) -> None:
    model, _ = loaded(ddpm.path)
    assert isinstance(model, DDPM)
    shown = beside_labels(picture(ddpm, "trajectory-final"), 4, 6)
    noise = ImageNoise(0, "noise", indices=range(2)).normal(*model.spec.shape)
    assert_same(shown[::2, 0], decoded(model, (noise + 1) / 2))
    # a deterministic sampler ends at what the network sees in the last x_t
    assert_same(shown[1::2, -1], decoded(model, model.sample(2, 0)))


class Drawn:
    """The lines and the stairs that matplotlib was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[tuple[Any, Any]] = []
        self.stairs: list[tuple[Any, Any]] = []
        for name, kept in (("plot", self.lines), ("stairs", self.stairs)):
            self._record(monkeypatch, name, kept)

    @staticmethod
    def _record(monkeypatch: pytest.MonkeyPatch, name: str, kept: list[tuple[Any, Any]]) -> None:
        draw = getattr(matplotlib.axes.Axes, name)

        def recorded(self: Any, *args: Any, **options: Any) -> Any:
            kept.append((args[0], args[1]))
            return draw(self, *args, **options)

        monkeypatch.setattr(matplotlib.axes.Axes, name, recorded)

    def assert_are(self, spent: dict[str, Any]) -> None:
        """The areas of the last picture are the nats of a bound.json."""
        times, density = self.lines[-1]
        assert times == pytest.approx(spent["time"], abs=1e-6)
        areas = np.diff([0.0, *times]) * density
        assert areas.tolist() == pytest.approx(spent["nats"], rel=1e-4)
        shares, edges = self.stairs[-1]
        assert list(shares) == pytest.approx(spent["nats_by_log_snr"], rel=1e-4)
        assert list(edges) == spent["log_snr_edges"]


def test_the_areas_of_the_bound_over_time_are_its_nats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures in training show the validation, the final picture shows the test."""
    drawn = Drawn(monkeypatch)
    others = ("samples", "forward", "trajectory")
    only = ["callbacks=pictures", *(f"callbacks.{name}=null" for name in others)]
    trained = train(tmp_path, *SMALL_DDPM, *only, "callbacks.bound.every_n_epochs=1")
    assert {path.stem for path in trained.pictures.iterdir()} == {
        "bound-step0000004",
        "bound-final",
    }
    drawn.assert_are(json.loads(trained.bound_path.read_text()))
    (validated,) = (row for row in trained.metrics() if "val/neg_elbo" in row)
    times, density = drawn.lines[0]
    areas = np.diff([0.0, *times]) * density
    assert areas.sum() + validated["val/kl_prior"] == pytest.approx(
        validated["val/neg_elbo"], rel=1e-4
    )


def test_a_bin_of_time_ends_at_the_last_step_in_it() -> None:
    steps, bins = 50, 40
    curves = BoundCurves(bins, dims=1, steps=steps)
    t = (torch.arange(1, steps + 1, dtype=torch.float64) / steps)[None]
    curves.update(t, torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t))
    found = curves.compute()
    # a bound that is the same at every step has the same density in every bin
    density = found["nats"] / found["time"].diff(prepend=torch.zeros(1))
    torch.testing.assert_close(density, torch.full((bins,), float(steps), dtype=torch.float64))


def test_measured_samples_are_held_against_as_many_test_images(tmp_path: Path) -> None:
    trained = train(
        tmp_path,
        *SMALL_VAE,
        *("evaluate=last", "callbacks=sampling", "callbacks.samples.images=4"),
        "callbacks.samples.measured=30",
    )
    model, data = loaded(trained.path)
    drawn = model.sample(30, 0)
    distance = energy_distance(drawn, first_images(data, "test", 30))
    assert trained.result is not None
    metrics = trained.result["metrics"]
    assert metrics["test/energy_distance"] == pytest.approx(distance, rel=1e-4)
    assert metrics["test/seconds_per_sample"] > 0
    (row,) = [row for row in trained.metrics() if "test/energy_distance" in row]
    assert row["test/energy_distance"] == metrics["test/energy_distance"]
    assert_same(
        cut(picture(trained, "samples-final"), 2, 2),
        decoded(model, drawn[:4]).reshape(2, 2, 28, 28),
    )
