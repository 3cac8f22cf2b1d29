"""Every row, colour, picture and curve of a report is that of its run, and of no other.

The runs are found in another order than that in which they are shown, and no two have a number, a
curve or a picture in common.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from genlab.media import charts
from genlab.report import answer, collect, sweep_table, swept_keys, write_sweep
from genlab.report.bounds import draw_bounds
from genlab.report.page import report_page
from genlab.report.replicates import has_replicates, summarise, to_csv
from genlab.report.replicates import rows as rows_of
from genlab.report.units import draw_units
from genlab.report.videos import compared
from genlab.runs.directory import RunDirectory

#: KL weight and seed of each run, by the name of its directory: the names sort otherwise.
RUNS = {"a": (30.0, 1), "b": (1.0, 1), "c": (0.0, 0), "d": (30.0, 0), "e": (0.0, 1), "f": (1.0, 0)}
SHOWN = ["c", "e", "f", "b", "d", "a"]
PICTURES = ("reconstructions", "samples")
EDGES = [float(edge) for edge in range(-20, 21, 2)]


def config(kl_weight: float, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "group": "demo",
        "data": {"name": "mnist_mini"},
        "model": {"_target_": "genlab.modules.vae.VAE", "kl_weight": kl_weight, "latent_dim": 20},
    }


def own_number(name: str) -> int:
    """By which everything of a run is told from that of the others."""
    return 1 + "hgfedcba".index(name)


def metrics(name: str) -> dict[str, float]:
    n = own_number(name)
    terms = {"reconstruction": 90.0 + 7 * n, "kl": 3.0 + n, "kl_diffusion": 2.0 + n}
    terms |= {"active_units": float(n), "neg_elbo": 93.0 + 8 * n}
    terms |= {"bits_per_dim": (93.0 + 8 * n) / (784 * math.log(2))}
    return {f"test/{key}": value for key, value in terms.items()}


def curve(name: str) -> list[float]:
    return [200.0 + own_number(name) * (10 - i) for i in range(5)]


def units(name: str) -> list[float]:
    return [own_number(name) / 2 ** (i + 1) for i in range(4)]


def spent(name: str) -> list[float]:
    return [float(own_number(name) * (i + 1)) for i in range(20)]


def shade(name: str, picture: str) -> int:
    return 25 * own_number(name) + (10 if picture == "samples" else 0)


def write(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    with RunDirectory(folder / name) as run:
        run.write_config(yaml.safe_dump(settings))
        for i, value in enumerate(curve(name)):
            run.append_metrics(10 * i, i, {"val/neg_elbo": value, "val/kl": value / 2})
        run.write_bound(
            {"kl_by_unit": units(name), "log_snr_edges": EDGES, "nats_by_log_snr": spent(name)}
        )
        run.write_result({"metrics": metrics(name), "verdict": f"verdict of {name}"})
        run.write_status("completed")
        for picture in PICTURES:
            flat = np.full((40, 60), shade(name, picture), np.uint8)
            Image.fromarray(flat).save(run.pictures / f"{picture}-final.png")
    return folder / name


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "demo"
    for name, (weight, seed) in RUNS.items():
        write(root, name, config(weight, seed))
        (root / name / "videos").mkdir()
        (root / name / "videos" / "training-final.mp4").write_bytes(f"film of {name}".encode())
    write_sweep(collect(root), root)
    return root


class Page(HTMLParser):
    """A page: the rows of its table, its charts by section, its cards, its pictures and media."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, str | None], list[str]]] = []
        self.charts: dict[str, list[dict[str, Any]]] = {}
        self.curves: list[dict[str, Any]] = []
        self.cards: dict[int, dict[str, str]] = {}
        self.gallery: dict[str, list[tuple[int, int]]] = {}
        self.media: dict[str, str] = {}
        self._kinds: list[str] = []
        self._section = ""
        self._given: dict[str, str | None] = {}
        self._figure = -1
        self._text: list[str] = []
        self._in_table = self._in_card = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("strong", "span", "button", "img"):
            self._text = []
        if tag == "section":
            self._section = given["id"] or ""
        elif tag == "script":
            self._given = given
        elif tag == "table":
            self._in_table = given.get("class") == "runs"
        elif tag == "tr" and self._in_table:
            self.rows.append((given, []))
        elif tag == "template":
            self._in_card = given["class"] == "card-of"
            if self._in_card:
                self.cards[int(given["data-run"] or "")] = {}
        elif tag == "figure":
            self._figure = int(given.get("data-run") or -1)
        elif "data-medium" in given and not self._in_card:
            kind = (given.get("alt") or given["aria-label"] or "").partition(":")[0]
            found = self.gallery.setdefault(kind, [])
            found.append((self._figure, int(given["data-medium"] or "")))

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        text = "".join(self._text)
        if tag == "script" and self._given.get("type") == "application/json":
            if self._given.get("class") == "curve-data":
                self.curves = json.loads(text)
            elif "id" not in self._given:
                self.charts.setdefault(self._section, []).append(json.loads(text))
        elif tag == "script":
            self.media[self._given.get("id") or ""] = text
        elif tag in ("td", "th") and self._in_table:
            self.rows[-1][1].append(text.strip())
        elif tag == "dt" and self._in_card:
            self._fact = text
        elif tag == "dd" and self._in_card:
            self.cards[max(self.cards)][self._fact] = text
        elif tag == "table":
            self._in_table = False

    @property
    def ids(self) -> list[str]:
        """The runs in the order of their numbers."""
        numbered = {
            int(given["data-run"] or ""): given["data-id"] or "" for given, _ in self.rows[1:]
        }
        return [numbered[i] for i in range(len(numbered))]

    def colour(self, number: int) -> str:
        (found,) = {
            (given["style"] or "").removeprefix("--shade:")
            for given, _ in self.rows[1:]
            if given["data-run"] == str(number)
        }
        return found

    def medium(self, number: int) -> bytes:
        return base64.b64decode(self.media[f"m{number}"])


@pytest.fixture(scope="module")
def page(sweep: Path) -> Page:
    return Page(report_page(collect(sweep), sweep))


def test_a_page_is_the_same_in_whatever_order_its_runs_are_given(sweep: Path) -> None:
    records = collect(sweep)
    assert [record.run_id for record in records] != SHOWN
    text = (sweep / "report.html").read_text()
    assert text == report_page(records, sweep) == report_page(records[::-1], sweep)


def test_rows_are_sorted_by_what_was_swept_with_the_numbers_of_their_runs(sweep: Path) -> None:
    table = sweep_table(collect(sweep))
    assert [row["run"] for row in table.rows] == SHOWN
    for row in (*table.rows, *csv.DictReader(io.StringIO((sweep / "summary.csv").read_text()))):
        name = row["run"]
        weight, seed = RUNS[name]
        assert (float(row["model.kl_weight"]), int(row["seed"])) == (weight, seed)
        assert {key: float(row[key]) for key in metrics(name)} == metrics(name)
        assert row["verdict"] == f"verdict of {name}"
    headings = [column.heading for column in table.columns]
    lines = [
        line.strip("|").split("|")
        for line in (sweep / "summary.md").read_text().splitlines()
        if line.startswith("|")
    ]
    told = [[cell.strip() for cell in line] for line in lines[2:]]
    for cells, name in zip((*table.cells(), *told), 2 * SHOWN, strict=True):
        shown = dict(zip(headings, cells, strict=True))
        assert (float(shown["kl_weight"]), int(shown["seed"])) == RUNS[name]
        assert float(shown["reconstruction"]) == metrics(name)["test/reconstruction"]
        assert float(shown["kl"]) == metrics(name)["test/kl"]


def test_a_row_of_the_page_has_the_numbers_and_the_colour_of_its_run(page: Page) -> None:
    (_, headings), *rows = page.rows
    assert page.ids == SHOWN and len(rows) == len(SHOWN)
    colours: dict[float, set[str]] = {}
    for attributes, cells in rows:
        number = int(attributes["data-run"] or "")
        name = page.ids[number]
        weight, seed = RUNS[name]
        shown = dict(zip(headings, cells, strict=True))
        assert (float(shown["kl_weight"]), int(shown["seed"])) == (weight, seed)
        assert float(shown["neg_elbo"]) == metrics(name)["test/neg_elbo"]
        assert page.cards[number]["kl"] == f"{metrics(name)['test/kl']:.2f}"
        assert attributes["title"] == f"kl_weight {weight:g}, seed {seed}"
        colours.setdefault(weight, set()).add(page.colour(number))
    assert all(len(of_setting) == 1 for of_setting in colours.values())
    assert len(set().union(*colours.values())) == 3


def test_a_picture_and_a_video_of_the_page_are_those_of_their_run(page: Page) -> None:
    assert set(page.gallery) == {"Reconstructions", "Samples", "Training"}
    for title, files in page.gallery.items():
        name, is_video = title.lower(), title == "Training"
        assert [i for i, _ in files] == list(range(len(SHOWN)))
        for i, number in files:
            content = page.medium(number)
            if is_video:
                assert content == f"film of {page.ids[i]}".encode()
            else:
                with Image.open(io.BytesIO(content)) as picture:
                    pixels = np.asarray(picture.convert("L"), float)
                assert abs(pixels.mean() - shade(page.ids[i], name)) < 4


def test_a_curve_of_the_page_is_that_of_its_run(page: Page) -> None:
    assert len(page.curves) == len(SHOWN)
    for name, run in zip(page.ids, page.curves, strict=True):
        steps, values = run["y"]["val/neg_elbo"]
        assert values == curve(name)
        assert run["step"][steps] == [0, 10, 20, 30, 40]
        assert run["y"]["val/kl"][1] == [value / 2 for value in curve(name)]


def test_points_and_lines_of_the_page_are_those_of_their_runs(page: Page) -> None:
    def shade(spec: dict[str, Any], name: str) -> str:
        scale = spec["layer"][0]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))[name]

    def lines(spec: dict[str, Any], table: str, field: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for row in spec["datasets"][table]:
            found.setdefault(page.ids[row["run"]], []).append(row[field])
            assert shade(spec, row["name"]) == page.colour(row["run"])
        return found

    bits = 1 / (784 * math.log(2))  # a diffusion model is among them
    (plane,) = page.charts["plane"]
    points = {page.ids[row["run"]]: row for row in plane["datasets"]["runs"]}
    assert set(points) == set(SHOWN)
    for name, row in points.items():
        assert row["y"] == pytest.approx(metrics(name)["test/reconstruction"] * bits)
        assert row["colour"] == page.colour(row["run"])
    by_rate = sorted(SHOWN, key=lambda name: metrics(name)["test/kl"])
    assert sorted(SHOWN, key=lambda name: points[name]["x"]) == by_rate

    assert lines(page.charts["units"][0], "units", "kl") == {name: units(name) for name in SHOWN}
    found = lines(page.charts["bound"][0], "bounds", "nats")
    assert found == {name: spent(name) for name in SHOWN}
    active = next(
        spec for spec in page.charts["diagnostics"] if spec["description"] == "Active latent units"
    )
    assert {page.ids[row["run"]]: row["value"] for row in active["datasets"]["runs"]} == {
        name: metrics(name)["test/active_units"] for name in SHOWN
    }


def test_pictures_laid_together_are_in_the_order_of_the_rows(sweep: Path) -> None:
    """The first seed of each setting is shown: c, f, d."""

    def shades(pixels: npt.NDArray[np.uint8], known: dict[int, str]) -> list[str]:
        found = [known[value] for value in pixels.tolist() if value in known]
        return list(dict.fromkeys(found))

    for picture in PICTURES:
        known = {shade(name, picture): name for name in SHOWN}
        with Image.open(sweep / f"{picture}.png") as opened:
            pixels = np.asarray(opened.convert("L"))
        if picture == "samples":  # two beside one another, the third below
            half = len(pixels) // 2
            order = shades(pixels[half - 20], known) + shades(pixels[-20], known)
        else:
            order = shades(pixels[:, 20], known)
        assert order == ["c", "f", "d"], picture


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The charts that would have been written."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(charts, "save", lambda chart, *_: made.append(charts.spec(chart)))
    return made


def lines_of(spec: dict[str, Any]) -> dict[str, list[float]]:
    """Values by name, of the lines that are no forecast."""
    tables = spec["datasets"]
    table, field = ("units", "kl") if "units" in tables else ("bounds", "nats")
    found: dict[str, list[float]] = {}
    for row in tables[table]:
        found.setdefault(row["name"], []).append(row[field])
    return found


def mean(values: list[list[float]]) -> list[float]:
    found: list[float] = np.mean(values, 0).tolist()
    return found


def test_a_line_over_seeds_is_the_mean_of_its_settings_runs(
    sweep: Path, drawn: list[dict[str, Any]], tmp_path: Path
) -> None:
    records = collect(sweep)
    assert draw_units(records, tmp_path / "x.png")
    assert draw_bounds(records, tmp_path / "x.png")
    settings = {"0": ("c", "e"), "1": ("f", "b"), "30": ("d", "a")}
    for figure, of in zip(drawn, (units, spent), strict=True):
        found = {name.split()[-1]: line for name, line in lines_of(figure).items()}
        assert set(found) == set(settings)
        for weight, names in settings.items():
            assert found[weight] == pytest.approx(mean([of(name) for name in names]))


def two_sweeps(root: Path, seeds: int) -> Path:
    """The same settings and seeds in `first`, which has a to d, and in `second`, e to h."""
    for folder, names in (("first", "abcd"), ("second", "efgh")):
        for name, i in zip(names, (3, 2, 1, 0) if seeds == 2 else (2, 0), strict=False):
            write(root / folder, name, config(float(i // 2), i % 2))
    return root


@pytest.mark.parametrize("seeds", [1, 2])
def test_runs_of_different_sweeps_are_no_replicates(tmp_path: Path, seeds: int) -> None:
    records = collect(two_sweeps(tmp_path, seeds))
    points = summarise(records, swept_keys(records))
    assert [point.runs for point in points] == [seeds] * 4
    assert has_replicates(points) is (seeds == 2)
    rows = list(csv.DictReader(io.StringIO(to_csv(rows_of(points)))))
    of_sweep: dict[str, set[float]] = {"first": set(), "second": set()}
    for row in rows:
        if row["metric"] == "test/kl":
            of_sweep[row["sweep"]].add(float(row["mean"]))
    expected = {"first": [("d", "c"), ("b", "a")], "second": [("h", "g"), ("f", "e")]}
    if seeds == 1:
        expected = {"first": [("a",), ("b",)], "second": [("e",), ("f",)]}
    for sweep, settings in expected.items():
        kl = [[metrics(name)["test/kl"] for name in names] for names in settings]
        assert of_sweep[sweep] == {sum(values) / len(values) for values in kl}


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_page_of_two_sweeps_has_a_mean_for_each(tmp_path: Path, seeds: int) -> None:
    root = two_sweeps(tmp_path, seeds)
    files = {file.name for file in write_sweep(collect(root), root / "both", as_one=True)}
    assert ("by_point.csv" in files) is (seeds == 2)
    page = Page((root / "both" / "report.html").read_text())
    means = page.charts["plane"][0]["datasets"]["spread"]
    has_images = sum(row["top"] > row["bottom"] for row in means)
    assert has_images == (4 if seeds == 2 else 0)
    labels = {row["run"]: row["label"] for row in page.charts["plane"][0]["datasets"]["runs"]}
    for attributes, cells in page.rows[1:]:
        where = "first" if (attributes["data-id"] or "") in "abcd" else "second"
        assert where in cells
        assert (attributes["title"] or "").startswith(f"{where}: ")
        assert labels[int(attributes["data-run"] or "")] == attributes["title"]


def test_the_answer_keeps_sweeps_apart(tmp_path: Path) -> None:
    said = answer(collect(two_sweeps(tmp_path, 2)))
    best = {
        "first": np.mean([metrics(name)["test/neg_elbo"] for name in "dc"]),
        "second": np.mean([metrics(name)["test/neg_elbo"] for name in "hg"]),
    }
    for sweep, nats in best.items():
        assert sweep in said and f"{nats:.1f}" in said, said


@pytest.mark.parametrize("seeds", [1, 2])
def test_lines_of_the_same_setting_in_two_sweeps_are_two(
    tmp_path: Path, drawn: list[dict[str, Any]], seeds: int
) -> None:
    records = collect(two_sweeps(tmp_path, seeds))
    assert draw_units(records, tmp_path / "x.png")
    assert draw_bounds(records, tmp_path / "x.png")
    for figure in drawn:
        assert len(lines_of(figure)) == 4


def test_videos_of_the_same_setting_in_two_sweeps_are_two(tmp_path: Path) -> None:
    shown = compared(collect(two_sweeps(tmp_path, 1)))
    assert sorted(record.run_id for _, record in shown) == ["a", "b", "e", "f"]
