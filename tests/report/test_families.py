"""Classes of models under equal budgets: who is compared with whom, and with which verdict."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from compared_runs import ddpm, vae
from rich.console import Console

from genlab.report.claims import Claim
from genlab.report.collect import Record, collect
from genlab.report.families import about_families, claims, comparisons, family_tables, front
from genlab.report.page import report_page
from genlab.report.sweep import print_sweep

GAN = "genlab.gan.model.GAN"
RATES = (0.0003, 0.001, 0.003)
#: KID and coverage of each class at its best rate, and a factor of its KID at the others.
QUALITY = {"VAE": (100.0, 0.10, 1.1), "GAN": (40.0, 0.20, 1.2), "DDPM": (20.0, 0.60, 1.1)}
COST = {"VAE": (1e9, 0.001), "GAN": (1.2e9, 0.002), "DDPM": (2.5e9, 0.05)}


def write(
    root: Path,
    family: str,
    rate: float,
    seed: int,
    images: int = 6400,
    flops: float | None = None,
    kid: float | None = None,
    **metrics: float,
) -> None:
    """A run directory; `kid` None is a run that failed."""
    name = f"{family}-{rate}-{seed}-{flops or 0:.4g}"
    path = root / name
    path.mkdir(parents=True)
    config = ddpm() if family == "DDPM" else vae()
    config["seed"], config["training_flops"] = seed, flops
    config["model"]["optimizer"] = {"lr": rate}
    config["trainer"]["accelerator"] = "cpu"
    config["group"] = root.name
    if family == "GAN":
        config["model"] = {"_target_": GAN, "optimizer": {"lr": rate}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    state = "completed" if kid is not None else "failed"
    (path / "status.json").write_text(json.dumps({"state": state}))
    if kid is None:
        return
    cost, latency = COST[family]
    chance = random.Random(name)
    found = {
        "test/kid_classifier_1a2b3c": kid,
        "test/fid_classifier_1a2b3c": kid + 20,
        "test/fid_infinity_classifier_1a2b3c": kid + 15,
        "test/recall_classifier_1a2b3c": 0.1,
        "test/coverage_classifier_1a2b3c": QUALITY[family][1] * chance.uniform(0.95, 1.05),
        "test/latency": 9.0,
        "test/latency_cpu": latency * chance.uniform(0.9, 1.1),
        "test/samples_per_second": chance.uniform(0.9, 1.1) / latency,
        **metrics,
    }
    if family != "GAN":
        found |= {"test/reconstruction": 90.0, "test/kl": 10.0, "test/neg_elbo": 100.0}
    if family == "DDPM":
        found["test/kl_diffusion"] = 9.0
    facts = {"training_images": images, "training_flops": int(images * cost), "parameters": 3e5}
    result = {"metrics": found, "wall_seconds": 10.0, **facts}
    (path / "result.json").write_text(json.dumps(result))


def study(root: Path, seeds: int = 5, failing: frozenset[str] = frozenset()) -> Path:
    """The runs of all classes under both budgets; the GAN may fail at its highest rate."""
    operations = 6400 * COST["DDPM"][0]
    for family, (kid, _, factor) in QUALITY.items():
        for flops in (None,) if family == "DDPM" else (None, operations):
            images = 6400 if flops is None else int(flops / COST[family][0])
            for rate in RATES:
                for seed in range(seeds):
                    chance = random.Random(f"{family} {rate} {seed} {flops}")
                    value = kid * chance.uniform(0.95, 1.05) * (1 if rate == 0.001 else factor)
                    of_steps = {}
                    if family == "DDPM" and rate == 0.001:
                        for steps in (10, 100):
                            of_steps[f"test/steps_{steps}/kid_classifier_1a2b3c"] = 100.0 / steps
                            of_steps[f"test/steps_{steps}/latency_cpu"] = steps / 400
                    fails = family in failing and rate == 0.003
                    write(
                        root,
                        family,
                        rate,
                        seed,
                        images,
                        flops,
                        None if fails else value,
                        **of_steps,
                    )
    return root


def by_name(found: list[Claim]) -> dict[tuple[str, str, str], Claim]:
    return {(one.claim, one.measure.partition(",")[0], one.budget): one for one in found}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return collect(study(tmp_path_factory.mktemp("runs") / "claims"))


def test_classes_are_compared_under_each_budget_that_they_share(records: list[Record]) -> None:
    found = comparisons(records)
    assert [one.budget for one in found] == ["images", "operations"]
    for one in found:
        assert one.diffusion.family == "DDPM"
        assert sorted(arm.family for arm in one.others) == ["GAN", "VAE"]
        assert all(len(arm.records) == 15 for arm in (one.diffusion, *one.others))
    ours = [one.diffusion for one in found]
    assert ours[0] is ours[1]
    assert set(ours[0].rates.values()) == {0.001}
    images = {arm.family: arm.fact("training_images") for arm in found[1].others}
    assert images["GAN"] == pytest.approx(6400 * 2.5 / 1.2, abs=1)


def test_planted_differences_get_their_verdicts(records: list[Record]) -> None:
    found = claims(comparisons(records))
    assert found.keys() == {"VAE", "GAN"}
    gan = by_name(found["GAN"])
    for budget in ("equal images", "equal operations"):
        assert gan["higher quality", "KID", budget].verdict == "supported"
        assert gan["better coverage", "coverage", budget].verdict == "supported"
        assert gan["more stable", "success", budget].verdict == "undecided"
    compute = gan["more compute", "operations", "equal images"]
    assert compute.value == pytest.approx(2.5 / 1.2) and compute.verdict == "supported"
    slower = gan["slower inference", "latency of one image", ""]
    assert slower.low < 25 < slower.high and slower.verdict == "supported"
    assert gan["slower inference", "images a second", ""].value < 0.1


def test_runs_that_fail_count_against_stability_and_not_for_quality(tmp_path: Path) -> None:
    root = study(tmp_path / "claims", failing=frozenset({"GAN"}))
    found = comparisons(collect(root))
    arm = next(arm for arm in found[0].others if arm.family == "GAN")
    assert (arm.successes, len(arm.records), arm.without_result) == (10, 15, 5)
    gan = by_name(claims(found)["GAN"])
    stable = gan["more stable", "success", "equal images"]
    assert stable.value == pytest.approx(1 / 3) and stable.basis == "15 of 15, 10 of 15 runs"
    assert gan["higher quality", "KID", "equal images"].verdict == "supported"


def test_the_sentence_names_every_verdict_once(records: list[Record]) -> None:
    found = comparisons(records)
    sentence = about_families(found)
    for family, against in claims(found).items():
        (own,) = (part for part in sentence.split(". ") if f"DDPM against {family}," in part)
        for verdict in ("supported", "contradicted", "undecided"):
            assert (f"{verdict}: " in own) == any(one.verdict == verdict for one in against)
    assert "slower inference (latency of one image, images a second)" in sentence


def test_one_seed_is_no_comparison(tmp_path: Path) -> None:
    assert comparisons(collect(study(tmp_path / "claims", seeds=1))) == []
    assert family_tables([]) == []


def test_the_front_has_each_number_of_steps_and_the_other_classes(records: list[Record]) -> None:
    rows = front(comparisons(records))
    shown = [(row["class"], row["steps"], row["kid"]) for row in rows if row["class"] == "DDPM"]
    assert shown == [("DDPM", "10 steps", 10.0), ("DDPM", "100 steps", 1.0)]
    assert {row["class"]: row["steps"] for row in rows[2:]} == dict.fromkeys(
        ("GAN", "VAE"), "one pass"
    )
    assert all(row["low"] <= row["kid"] <= row["high"] and row["seconds"] > 0 for row in rows)


def test_page_terminal_and_summary_have_the_tables(records: list[Record], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_sweep(records, tmp_path / "out", console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    summary = (tmp_path / "out" / "summary.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    for text in (printed, summary, page):
        assert "higher quality than the GAN" in text and "undecided" in text
    assert page.count("Claims about the diffusion model") == 2


@pytest.mark.parametrize("value", [1e308, 0.0, float("nan"), "x", None])
def test_numbers_of_a_stranger_are_left_out(tmp_path: Path, value: Any) -> None:
    root = study(tmp_path / "claims", seeds=2)
    for path in root.glob("*-0-*/result.json"):
        result = json.loads(path.read_text())
        for name in result["metrics"]:
            if "classifier" in name or "latency" in name or "second" in name:
                result["metrics"][name] = value
        result |= {"training_flops": value, "training_images": value, "wall_seconds": value}
        path.write_text(json.dumps(result))
    records = collect(root)
    found = comparisons(records)
    family_tables(found)
    front(found)
    assert report_page(records, tmp_path)
