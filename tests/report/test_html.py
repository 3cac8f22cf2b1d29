"""The page of a sweep, opened in a real browser; the runs are written, not trained."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from genlab.cli import main
from genlab.report import answer, collect, swept_keys, write_sweep
from genlab.report.colours import colours
from genlab.report.media import Media, relative_url
from genlab.report.page import report_page
from genlab.report.parts import Part
from genlab.report.sections import Section
from genlab.report.training import thinned
from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import Job, Manifest

WEIGHTS = (0.0, 1.0, 30.0)
HOSTILE = "</script><script>window.hacked=1</script><!--<img src=x onerror=hacked=1>\"'&%{x}`${1}"


def config(kl_weight: float, seed: int = 0, **top: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "group": "demo",
        "data": {"name": "mnist_mini"},
        "model": {
            "_target_": "genlab.vae.model.VAE",
            "kl_weight": kl_weight,
            "latent_dim": 20,
            "likelihood": {
                "_target_": "genlab.vae.likelihoods.GaussianLikelihood",
                "scale": 1.0,
            },
        },
    } | top


def metrics(kl_weight: float, seed: int = 0) -> dict[str, float]:
    kl = 0.0 if kl_weight > 10 else 100 / (1 + kl_weight) ** 2 + 0.01 * seed
    reconstruction = 726 + 20 * (1 - 1 / (1 + kl_weight)) + 1.5 * seed
    neg_elbo = reconstruction + kl
    return {
        "test/reconstruction": reconstruction,
        "test/kl": kl,
        "test/neg_elbo": neg_elbo,
        "test/bits_per_dim": neg_elbo / (784 * math.log(2)),
        "test/active_units": float(int(20 / (1 + kl_weight))),
        "test/mutual_information": min(7.6, kl),
        "test/information_cap": 7.6,
        "forecast/active_units": 0.0 if kl_weight > 5 else 12.0,
        "forecast/rate": 0.0 if kl_weight > 5 else 9.0,
        "forecast/reconstruction": 746.0 if kl_weight > 5 else 735.0,
        "forecast/collapse_threshold": 5.4,
    }


def kl_of_units(kl_weight: float, seed: int = 0) -> dict[str, list[float]]:
    """A bound.json whose units are in no order; weight 0 has no finite forecast."""
    shares = [math.exp(-0.4 * ((7 * i + seed) % 20)) for i in range(20)]
    kl = metrics(kl_weight, seed)["test/kl"]
    found = {"kl_by_unit": [kl * share / sum(shares) for share in shares]}
    if kl_weight > 0:
        foretold = [0.0 if kl_weight > 5 else max(0.0, 1.5 - 0.125 * i) for i in range(20)]
        found["forecast_kl_by_unit"] = foretold
    return found


def write(path: Path, settings: dict[str, Any], found: dict[str, float], steps: int = 40) -> Path:
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(settings))
        run.write_env({"processor": "a chip", "gpus": [], "versions": {"torch": "2.13"}})
        for step in range(0, steps, 10):
            run.append_metrics(step, 0, {"val/reconstruction": 800 - step, "val/kl": step})
        run.write_result({"metrics": found, "verdict": ""})
        run.write_status("completed")
    return path


def draw(path: Path, name: str, shade: int) -> None:
    pixels = np.full((60, 200), shade, np.uint8)
    pixels[::4] = 255
    Image.fromarray(pixels).save(path / "pictures" / f"{name}-final.png")


def film(path: Path, frames: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(frames):
            pixels = np.full((64, 96, 3), 10 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three weights with two seeds, one of them failed, one never started, pictures, videos."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    for weight in WEIGHTS:
        for seed in (0, 1):
            name = f"kl_weight_{weight:g}-seed_{seed}"
            path = write(root / name, config(weight, seed), metrics(weight, seed))
            with RunDirectory(path) as run:
                run.write_bound(kl_of_units(weight, seed))
            for picture in ("reconstructions", "samples"):
                draw(path, picture, int(3 * weight))
            film(path / "videos" / "interpolation-final.mp4")
    film(root / "videos" / "interpolation.mp4")
    with RunDirectory(root / "kl_weight_4-seed_0") as run:
        run.write_config(yaml.safe_dump(config(4.0)))
        run.write_status("failed", type="OutOfMemory", message="no room", where="fit")
    (root / "jobs").mkdir()
    (root / "jobs" / "kl_weight_4-seed_0.log").write_text("epoch 3\nKilled\n")
    jobs = tuple(
        Job(f"kl_weight_{w:g}-seed_0", (), {"model.kl_weight": w}, 0, config(w))
        for w in (*WEIGHTS, 4.0, 9.0)
    )
    question = "Why does a large weight ruin the reconstruction?"
    Manifest("demo", ("model.kl_weight",), jobs, question, ("sweep.py",)).write(root)
    write_sweep(collect(root), root)
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for name in names if (path := shutil.which(name))]
    path = os.environ.get("GENLAB_CHROMIUM") or next(iter(found), None)
    if path is None:
        if os.environ.get("GENLAB_REQUIRE_BROWSER"):
            pytest.fail("no Chromium: install one, or name it in GENLAB_CHROMIUM")
        pytest.skip("no Chromium on this machine; GENLAB_CHROMIUM can name one")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@dataclass
class Opened:
    """A page and what it did that it should not."""

    page: Page
    path: Path
    wrong: list[str] = field(default_factory=list)

    def kept(self) -> list[int]:
        script = "[...document.querySelectorAll('.runs tr.kept')].map(r => +r.dataset.run)"
        return list(self.page.evaluate(script))

    def column(self, heading: str) -> list[str]:
        script = """heading => {
            const names = [...document.querySelectorAll('.runs thead th')];
            const i = names.findIndex(th => th.textContent === heading);
            return [...document.querySelectorAll('.runs tbody tr')]
                .filter(row => !row.hidden).map(row => row.cells[i].textContent);
        }"""
        return list(self.page.evaluate(script, heading))

    def lines(self, section: str) -> list[dict[str, Any]]:
        """The lines of a chart: the rows that each is drawn of, and how visible it is."""
        script = """section => {
            const paths = [...document.querySelectorAll(`${section} .mark-line path`)];
            return paths.map(path => ({
            rows: path.__data__.mark.items.map(item => item.datum),
            dash: path.getAttribute('stroke-dasharray'),
            opacity: Number(path.getAttribute('opacity') ?? 1),
            }));
        }"""
        return list(self.page.evaluate(script, section))

    def points(self) -> list[int]:
        script = """[...document.querySelectorAll('#plane .mark-symbol path')]
            .map(path => path.__data__.datum.run).filter(run => run !== undefined)"""
        return sorted(self.page.evaluate(script))


def wait(page: Page, condition: str) -> None:
    """Ask again until it holds; the page's policy forbids Playwright to do so inside of it."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"this never came true: {condition}")


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    contexts = []

    def opener(path: Path, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page, path)
        url = path.absolute().as_uri()
        page.on("console", lambda m: opened.wrong.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: opened.wrong.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None
                if r.url == url or r.url.startswith(("data:", "blob:"))
                else opened.wrong.append(f"request for {r.url}")
            ),
        )
        page.goto(url)
        page.evaluate("document.querySelector('[id^=plane]')?.scrollIntoView()")
        wait(page, "performance.getEntriesByName('plane').length > 0")
        return opened

    yield opener
    for context in contexts:
        context.close()


def look_everywhere(page: Page) -> None:
    """Scroll through the page, so that all that waits to be seen is drawn."""
    for top in range(0, page.evaluate("document.documentElement.scrollHeight"), 600):
        page.evaluate("top => scrollTo({top, behavior: 'instant'})", top)
        page.wait_for_timeout(60)


def test_the_page_says_and_draws_what_was_found(sweep: Path, open_page: Any) -> None:
    opened = open_page(sweep / "report.html")
    page = opened.page
    assert page.inner_text("h1") == "Why does a large weight ruin the reconstruction?"
    finding = page.inner_text("#answer")
    assert answer(collect(sweep)).startswith(finding)
    assert "kl_weight 30 switches off" in finding and "times the squared error" in finding
    look_everywhere(page)
    assert len(opened.points()) == 6
    assert len(opened.lines("#curves")) == 6
    assert page.locator(".charts .vega-embed").count() == 2
    titles = page.locator("#curves .role-axis-title").all_text_contents()
    assert titles == ["step", "val/reconstruction (nats per image)"]
    side_by_side = page.locator(".shown figure.whole video").count()
    page.get_by_role("button", name="Reconstructions", exact=True).click()
    look_everywhere(page)
    script = "[...document.querySelectorAll('.shown img')].every(i => i.naturalWidth > 0)"
    assert side_by_side == 1 and page.locator(".shown img").count() == 6 and page.evaluate(script)
    assert page.locator("text=kl_weight=30").count() >= 1
    assert not opened.wrong


def test_the_units_of_each_run_are_drawn_in_the_order_of_their_kl(
    sweep: Path, open_page: Any
) -> None:
    opened = open_page(sweep / "report.html")
    page = opened.page
    look_everywhere(page)
    lines = opened.lines("#units")
    assert len(lines) == 6 + 2
    ids = page.evaluate("[...document.querySelectorAll('.runs tbody tr')].map(r => r.dataset.id)")
    for line in lines:
        rows = line["rows"]
        stored = json.loads((sweep / ids[rows[0]["run"]] / "bound.json").read_text())
        is_forecast = rows[0]["part"] == "forecast"
        assert (line["dash"] == "5,4") == is_forecast
        of_file = stored["forecast_kl_by_unit" if is_forecast else "kl_by_unit"]
        in_order = sorted(of_file, reverse=True)
        assert [row["unit"] for row in rows] == list(range(1, 21))
        assert [row["kl"] for row in rows] == [max(value, 0.001) for value in in_order]
        said = [float(row["nats"]) for row in rows]
        assert said == pytest.approx(in_order, rel=5e-3, abs=1e-9)
    note = page.inner_text("#units .note")
    assert "a weight of 5.4. So at a weight of 30 no unit pays for its KL." in note
    texts = page.locator("#units .mark-text text").all_text_contents()
    assert {f"kl_weight {weight:g}" for weight in WEIGHTS} <= set(texts)

    page.locator(".key").get_by_role("button", name="kl_weight 30").click()
    faint = {line["rows"][0]["run"] for line in opened.lines("#units") if line["opacity"] < 1}
    assert faint == {0, 1, 2, 3}
    page.fill(".filter", "kl_weight<1")
    assert {line["rows"][0]["run"] for line in opened.lines("#units")} == {0, 1}
    assert not opened.wrong


def test_runs_without_the_kl_of_their_units_have_no_chart_of_it(
    tmp_path: Path, open_page: Any
) -> None:
    broken = ({}, {"kl_by_unit": 3}, {"kl_by_unit": []}, {"kl_by_unit": [1.0, None]})
    for i, bound in enumerate(broken):
        path = write(tmp_path / f"run-{i}", config(float(i)), metrics(float(i)))
        (path / "bound.json").write_text(json.dumps(bound))
    path = write(tmp_path / "run-nan", config(9.0), metrics(9.0))
    (path / "bound.json").write_text('{"kl_by_unit": [NaN, 1e999], "nats_by_log_snr": [NaN]}')
    files = [file.name for file in write_sweep(collect(tmp_path), tmp_path)]
    assert "kl_by_unit.png" not in files
    opened = open_page(tmp_path / "report.html")
    assert opened.page.locator("#units").count() == 0 and len(opened.points()) == 5
    assert not opened.wrong

    with RunDirectory(tmp_path / "run-0") as run:
        run.write_bound({"kl_by_unit": [0.5], "forecast_kl_by_unit": [None]})
    files = [file.name for file in write_sweep(collect(tmp_path), tmp_path)]
    assert {"kl_by_unit.png", "kl_by_unit.svg"} <= set(files)
    opened = open_page(tmp_path / "report.html")
    look_everywhere(opened.page)
    assert opened.page.locator("#units .mark-symbol path").count() == 1
    assert not opened.wrong


def test_what_has_no_result_is_named_with_its_reason(sweep: Path, open_page: Any) -> None:
    text = open_page(sweep / "report.html").page.locator("#unfinished").inner_text()
    assert "kl_weight_4-seed_0 failed" in text and "OutOfMemory: no room (in fit)" in text
    assert "kl_weight_9-seed_0 missing" in text and "never started" in text
    records = {record.run_id: record for record in collect(sweep)}
    missing = records["kl_weight_9-seed_0"]
    assert missing.flat["model.kl_weight"] == 9.0 and not missing.config
    assert swept_keys(list(records.values())) == ["model.kl_weight", "seed"]
    assert "Killed" in (sweep / "report.html").read_text()


def test_the_table_is_sorted_and_filtered(sweep: Path, open_page: Any) -> None:
    opened = open_page(sweep / "report.html")
    page = opened.page
    weights = [float(text) for text in opened.column("kl_weight")]
    assert weights == [0, 0, 1, 1, 4, 9, 30, 30]
    heading = page.locator(".runs thead th", has_text="neg_elbo")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(text) for text in opened.column("neg_elbo") if text]
    assert values == sorted(values) and opened.column("neg_elbo")[-2:] == ["", ""]
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text) for text in opened.column("neg_elbo") if text]
    assert values == sorted(values, reverse=True) and opened.column("neg_elbo")[-2:] == ["", ""]

    page.fill(".filter", "failed")
    assert opened.column("state") == ["failed"]
    assert page.inner_text(".matches") == "1 of 8 runs"
    page.fill(".filter", "kl_weight>=1 kl_weight<9 completed")
    assert [float(text) for text in opened.column("kl_weight")] == [1, 1]
    page.fill(".filter", "")
    assert len(opened.column("state")) == 8 and page.inner_text(".matches") == ""


def test_a_run_is_kept_from_the_plane_the_table_and_the_key(sweep: Path, open_page: Any) -> None:
    opened = open_page(sweep / "report.html")
    page = opened.page
    look_everywhere(page)
    script = """() => {
        const paths = [...document.querySelectorAll('#plane .mark-symbol path')];
        const box = paths.find(path => path.__data__.datum.run === 2).getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];
    }"""
    page.locator("#plane .chart").scroll_into_view_if_needed()
    page.mouse.move(*page.evaluate(script))
    page.wait_for_timeout(200)
    assert "kl_weight 1, seed 0" in page.inner_text(".pointed .name")
    page.mouse.click(*page.evaluate(script))
    page.wait_for_timeout(400)
    assert opened.kept() == [2]
    assert page.locator("div.kept .card img").count() >= 2
    page.get_by_label("keep kl_weight 0, seed 0").check()
    assert opened.kept() == [0, 2]
    page.locator(".key").first.get_by_role("button", name="kl_weight 30").click()
    assert opened.kept() == [0, 2, 6, 7]
    page.get_by_role("button", name="Keep none").click()
    assert opened.kept() == []
    assert not opened.wrong


def test_a_video_plays(sweep: Path, open_page: Any) -> None:
    opened = open_page(sweep / "report.html")
    page = opened.page
    look_everywhere(page)
    page.locator(".shown video").first.wait_for()
    assert page.locator(".shown video[src]").count() == 1
    page.get_by_text("Each run's own (6)").click()
    look_everywhere(page)
    assert page.locator(".shown video[src]").count() == 7
    page.get_by_role("button", name="Play or stop all together").click()
    wait(
        page,
        "[...document.querySelectorAll('.shown video')]"
        ".every(video => video.readyState >= 2 && video.currentTime > 0.2)",
    )
    assert not opened.wrong


@pytest.mark.parametrize(
    ("options", "paper"),
    [
        ({"color_scheme": "dark"}, "rgb(20, 23, 26)"),
        ({"viewport": {"width": 360, "height": 740}, "has_touch": True}, "rgb(255, 255, 255)"),
        ({"viewport": {"width": 1600, "height": 900}}, "rgb(255, 255, 255)"),
    ],
    ids=["dark", "phone", "wide"],
)
def test_nothing_overflows(
    sweep: Path, open_page: Any, options: dict[str, Any], paper: str
) -> None:
    opened = open_page(sweep / "report.html", **options)
    look_everywhere(opened.page)
    assert opened.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    assert not opened.wrong


def test_it_prints_with_all_pictures(sweep: Path, open_page: Any) -> None:
    opened = open_page(sweep / "report.html")
    opened.page.get_by_role("button", name="Samples", exact=True).click()
    assert opened.page.pdf().startswith(b"%PDF")
    loaded = "[...document.querySelectorAll('.shown img')].every(image => image.src)"
    assert opened.page.evaluate(loaded)
    wait(opened.page, "document.querySelectorAll('#curves .mark-line path').length > 0")


def test_names_are_never_markup(tmp_path: Path, open_page: Any) -> None:
    root = tmp_path / "a&b<i>"
    odd = "x<b>'\" %{y}"
    for i, name in enumerate((HOSTILE, "plain")):
        settings = config(float(i), recipe=name, group=HOSTILE)
        settings["data"]["name"] = HOSTILE
        found = metrics(float(i)) | {f"test/{HOSTILE}": float(i)}
        path = write(root / (odd if i == 0 else "run"), settings, found)
        with RunDirectory(path) as run:
            run.write_bound({"kl_by_unit": [1.0, 0.1], "forecast_kl_by_unit": [1.0, 0.0]})
        draw(path, f"s<i>{i}", 9)
        with RunDirectory(path) as run:
            run.append_metrics(90, 1, {f"val/{HOSTILE}": 1.0})
            run.append_metrics(99, 1, {f"val/{HOSTILE}": 2.0})
            run.write_env({"processor": HOSTILE})
    with RunDirectory(root / "failed") as run:
        run.write_config(yaml.safe_dump(config(7.0, recipe=HOSTILE)))
        run.write_status("failed", type="E", message=HOSTILE)
    (root / "jobs").mkdir()
    (root / "jobs" / "failed.log").write_text(f"\x1b[31m{HOSTILE}\n")
    job = Job(HOSTILE.replace("/", ""), (HOSTILE,), {HOSTILE: HOSTILE}, 0, config(8.0))
    Manifest("demo", (HOSTILE,), (job,), HOSTILE, (HOSTILE,)).write(root)
    write_sweep(collect(root), root)

    opened = open_page(root / "report.html")
    page = opened.page
    # the failed run and the job that never started are of other data, and so a group of their own
    assert page.locator(".part h2").all_inner_texts() == [" ".join(HOSTILE.split())] * 2
    look_everywhere(page)
    page.select_option(".metric", f"val/{HOSTILE}")
    page.get_by_label("logarithmic scale").check()
    page.mouse.move(10, 10)
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("i, b, img[src='x']").count() == 0
    assert HOSTILE in (page.locator("#configs-2").text_content() or "")
    look_everywhere(page)
    titles = page.locator("#curves-2 .role-axis-title").all_text_contents()
    assert f"val/{HOSTILE}" in titles
    assert not opened.wrong


def test_a_small_constant_is_not_labelled_zero(tmp_path: Path, open_page: Any) -> None:
    path = write(tmp_path / "run", config(1), metrics(1))
    rows = [{"step": i, "epoch": i, "train/learning_rate": 0.001} for i in range(1, 4)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "report.html").write_text(report_page(collect(tmp_path), tmp_path), "utf-8")
    opened = open_page(tmp_path / "report.html")
    look_everywhere(opened.page)
    labels = opened.page.locator("#curves .role-axis-label").all_text_contents()
    assert "0.001" in labels and "0" not in labels
    assert not opened.wrong


def test_two_hundred_runs_are_small_and_few_nodes(tmp_path: Path, open_page: Any) -> None:
    generator = np.random.default_rng(0)
    for i in range(200):
        weight = 0.05 * i
        path = write(tmp_path / f"run-{i}", config(weight), metrics(weight), steps=2000)
        for name in ("reconstructions", "samples", "interpolation", "traversal"):
            pixels = generator.integers(0, 255, (12, 40), np.uint8).repeat(14, 0).repeat(14, 1)
            Image.fromarray(pixels).save(path / "pictures" / f"{name}-final.png")
    page = tmp_path / "report.html"
    page.write_text(report_page(collect(tmp_path), tmp_path), encoding="utf-8")
    assert page.stat().st_size < 10_000_000
    opened = open_page(page)
    assert len(opened.points()) == 200
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 12_000
    # Only what is near the window was made into a picture.
    assert (
        opened.page.evaluate(
            "[...document.querySelectorAll('.shown img')].filter(image => image.src).length"
        )
        < 100
    )
    loaded = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    drawn = opened.page.evaluate("performance.getEntriesByName('plane')[0].startTime")
    print(f"200 runs: load event after {loaded:.0f} ms, plane after {drawn:.0f} ms")
    assert not opened.wrong


def test_two_sweeps_lie_side_by_side(tmp_path: Path, open_page: Any) -> None:
    for name, offset in (("first", 0.0), ("second", 3.0)):
        for weight in (0.0, 1.0):
            found = metrics(weight)
            found["test/reconstruction"] += offset
            found["test/neg_elbo"] += offset
            draw(write(tmp_path / name / f"w{weight:g}", config(weight), found), "samples", 99)
    assert main(["report", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    folder = tmp_path / "first-beside-second"
    opened = open_page(folder / "report.html")
    finding = opened.page.inner_text("#answer")
    assert finding == (
        "The lowest neg_elbo is 761.0 nats in first (kl_weight 1), 764.0 nats in second "
        "(kl_weight 1)."
    )
    assert len(opened.points()) == 4
    assert sorted(opened.column("sweep")) == ["first", "first", "second", "second"]
    assert opened.page.locator(".sweeps .name").all_inner_texts() == ["first", "second"]
    with (folder / "summary.csv").open() as file:
        assert {row["sweep"] for row in csv.DictReader(file)} == {"first", "second"}
    # What was laid side by side is no sweep of its own.
    assert len(collect(tmp_path)) == 4


def test_what_is_over_the_budget_is_linked(tmp_path: Path) -> None:
    run = write(tmp_path / "a b" / "run", config(1.0), metrics(1.0))
    film(run / "videos" / "training-final.mp4")
    (run / "videos" / "broken-final.mp4").mkdir()
    media, path = Media(), run / "videos" / "training-final.mp4"
    media.add_videos([path], budget=path.stat().st_size - 1)
    assert media.too_large == [path] and not media.embedded
    assert relative_url(path, tmp_path) == "a%20b/run/videos/training-final.mp4"
    media.add_videos([path, run / "videos" / "broken-final.mp4"], budget=path.stat().st_size)
    assert list(media.embedded) == [path] and len(media.broken) == 1


@pytest.mark.parametrize("has_bound", [True, False])
def test_a_page_says_nats_where_a_run_has_a_bound(tmp_path: Path, has_bound: bool) -> None:
    found = metrics(1.0) if has_bound else {"test/energy_score": 4.5, "test/diversity": 0.8}
    write(tmp_path / "sweep" / "run", config(1.0), found)
    page = report_page(collect(tmp_path / "sweep"), tmp_path / "sweep")
    assert ("Nats per image of the test set" in page) == has_bound


def test_thinned_curves_keep_their_ends_and_extremes() -> None:
    values = [math.sin(i / 50) for i in range(5000)]
    values[1234], values[4321] = 99.0, -99.0
    steps, kept = thinned((list(range(5000)), values), 300)
    assert len(steps) <= 300 and steps[0] == 0 and steps[-1] == 4999
    assert {99.0, -99.0} <= set(kept)
    assert kept == [values[step] for step in steps]
    assert thinned(([1, 2], [3.0, 4.0]), 300) == ([1, 2], [3.0, 4.0])


def test_one_setting_has_one_colour() -> None:
    shades = colours([{"w": w} for w in (0.0, 1.0, 1.0, 30.0)])
    assert shades[1] == shades[2] and len(set(shades)) == 3
    words = colours([{"schedule": name} for name in ("Cosine", "Linear", "Cosine")])
    assert words[0] == words[2] != words[1]
    many = colours([{"w": i, "v": str(i % 2)} for i in range(40)])
    assert len(set(many)) == 40
    assert all(
        re.fullmatch(r"light-dark\(#[0-9a-f]{6}, #[0-9a-f]{6}\)", shade)
        for shade in (*shades, *words, *many)
    )


def test_a_section_from_outside_is_drawn_and_its_text_is_escaped(
    sweep: Path, open_page: Any
) -> None:
    import altair as alt

    def pixels(part: Part) -> dict[str, Any] | None:
        rows = [{"run": run.number, "pixels": 784} for run in part.runs]
        chart = alt.Chart(alt.Data(values=rows)).mark_bar().encode(x="run:O", y="pixels:Q")
        return {"name": HOSTILE, "figure": chart.properties(height=120)}

    template = '<p class="own" title="{{ name }}">{{ name }}</p>{{ chart(figure, name) }}'
    own = Section("own", "My own", pixels, template)
    nothing = Section("nothing", "Nothing", lambda part: None, "{{ missing }}")
    path = sweep / "own.html"
    path.write_text(report_page(collect(sweep), sweep, (own, nothing)), encoding="utf-8")
    opened = open_page(path)
    page = opened.page
    look_everywhere(page)
    assert page.locator("#own .own").text_content() == HOSTILE
    assert page.locator("#own .own").get_attribute("title") == HOSTILE
    assert page.locator("#own .vega").get_attribute("aria-label") == HOSTILE
    assert page.locator("#own .mark-rect path").count() == 8
    assert page.get_by_role("link", name="My own").count() + page.locator("#own h2").count() > 0
    assert page.locator("#nothing").count() == 0
    assert page.evaluate("window.hacked === undefined")
    assert not opened.wrong
