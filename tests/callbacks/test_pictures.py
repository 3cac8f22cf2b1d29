"""Pictures of a training: which model, images and moment each of them shows."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from trained_media import SMALL_DDPM, SMALL_VAE, decoded, differ, loaded, train, validation_images

from genlab.callbacks.base import first_images
from genlab.callbacks.pictures import latent_figure
from genlab.diffusion.curves import BoundCurves
from genlab.diffusion.model import DDPM
from genlab.media import charts, pictures
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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The specifications of all charts that are drawn."""
    drawn: list[dict[str, Any]] = []
    pixels = charts.pixels

    def recorded(chart: Any) -> Pixels:
        drawn.append(charts.spec(chart))
        return pixels(chart)

    monkeypatch.setattr(charts, "pixels", recorded)
    return drawn


def test_the_latent_map_has_the_means_on_two_axes_in_the_colour_of_their_label(
    tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    others = ("reconstructions", "samples", "interpolation", "traversal")
    only = ["callbacks=pictures", *(f"callbacks.{name}=null" for name in others)]
    trained = train(tmp_path, *SMALL_VAE, *only, "evaluate=last", "callbacks.latent_map.images=30")
    assert {path.stem for path in trained.pictures.iterdir()} == {"latent_map-final"}

    model, data = loaded(trained.path)
    with torch.no_grad():
        means = model.encode(first_images(data, "test", 30)).loc.double().numpy()
    centred = means - means.mean(0)
    expected = centred @ np.linalg.svd(centred)[2][:2].T
    labels = [model.spec.classes[i] for i in data.labels("test")[:30]]
    (figure,) = figures
    rows = figure["data"]["values"]
    assert [row["name"] for row in rows] == labels
    at = np.array([[row["first"], row["second"]] for row in rows])
    signs = np.sign((at * expected).sum(0))  # a principal axis has no sign
    np.testing.assert_allclose(at, signs * expected, atol=1e-4)
    assert "30 test images" in figure["title"] and "step 4" in figure["title"]


def fills(svg: str) -> list[tuple[str, str]]:
    """The place and the colour of each point of a chart."""
    points = re.findall(r'<path aria-label="[^"]*" role="graphics-symbol"[^>]*>', svg)
    found = [re.search(r'translate\(([^)]*)\)" .*fill="([^"]*)"', point) for point in points]
    return [(place[1], place[2]) for place in found if place]


def test_latent_maps_have_one_scale_for_all_runs_and_one_of_their_own() -> None:
    names = [f"class {i % 10}" for i in range(40)]
    spread = np.stack([np.linspace(-6, 6, 40), np.linspace(1, -1, 40)], 1)
    for points, own, outside in ((spread, 6, 14), (0.001 * spread, 0.006, 0)):
        chart = latent_figure(points, names, sorted(set(names)), "title")
        shared, itself = charts.spec(chart)["hconcat"]
        for panel, extent in ((shared, 4), (itself, own)):
            for axis in ("x", "y"):
                assert panel["encoding"][axis]["scale"]["domain"] == [-extent, extent]
        assert shared["title"]["subtitle"].startswith(str(outside or "no"))
        drawn = fills(charts.svg(chart))
        assert len({colour for _, colour in drawn}) == 10
        places = np.array([place.split(",") for place, _ in drawn[:40]], float)
        # on the first, a collapsed run is one point: less than a pixel
        assert (np.abs(places - 190).max() < 1) == (outside == 0)


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


def panels_of(figure: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows by time and by log-SNR of a picture of the bound."""
    schedule, by_time, by_log_snr, error = (panel["data"]["values"] for panel in figure["concat"])
    assert schedule == by_time == error
    return by_time, by_log_snr


def test_the_picture_of_the_bound_holds_its_nats(
    tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    """Pictures in training show the validation, the final picture shows the test."""
    others = ("samples", "forward", "trajectory")
    only = ["callbacks=pictures", *(f"callbacks.{name}=null" for name in others)]
    trained = train(tmp_path, *SMALL_DDPM, *only, "callbacks.bound.every_n_epochs=1")
    assert {path.stem for path in trained.pictures.iterdir()} == {
        "bound-step0000004",
        "bound-final",
    }
    validated, tested = figures
    assert "validation split" in validated["title"] and "test split" in tested["title"]
    by_time, by_log_snr = panels_of(tested)
    spent = json.loads(trained.bound_path.read_text())
    areas = [(row["to"] - row["from"]) * row["density"] for row in by_time]
    assert areas == pytest.approx(spent["nats"], rel=1e-4)
    assert [row["to"] for row in by_time] == pytest.approx(spent["time"], abs=1e-6)
    for field, name in (("log_snr", "log_snr"), ("error", "squared_error_per_dim")):
        assert [row[field] for row in by_time] == pytest.approx(spent[name], rel=1e-4)
    shares = {(row["from"], row["to"]): row["nats"] for row in by_log_snr}
    edges = spent["log_snr_edges"]
    assert shares == pytest.approx(
        {
            bin_: nats
            for bin_, nats in zip(pairwise(edges), spent["nats_by_log_snr"], strict=True)
            if nats
        },
        rel=1e-4,
    )
    (logged,) = (row for row in trained.metrics() if "val/neg_elbo" in row)
    by_time, _ = panels_of(validated)
    nats = sum((row["to"] - row["from"]) * row["density"] for row in by_time)
    assert nats + logged["val/kl_prior"] == pytest.approx(logged["val/neg_elbo"], rel=1e-4)


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
