"""`genlab export`: it writes the model, whole or not at all, and the card says what is known."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from trained_runs import train_in

import genlab
from genlab import cli
from genlab.errors import DONE, REFUSED, ConfigError, RunDirectoryError
from genlab.runs.locks import Lock
from genlab.runs.run import Run
from genlab.training import export as exporting
from genlab.training.load import read_received
from genlab.training.origin import origin

TINY = ["trainer=smoke", "callbacks=none", "logger=none", "forecast=false"]
DDPM = ["model=ddpm", "model.steps=20", "model.sampler.steps=5", "model.net.channels=8"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_in(tmp_path_factory.mktemp("vae"), *TINY, "ema_decay=0.9").path


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With buffers whose length training decides, and classes."""
    changes = ["model/reverse_variance=optimal", "model.conditional=true", "model.test_draws=2"]
    short = ["data.eval_batch_size=20", "model.val_draws=1"]
    return train_in(tmp_path_factory.mktemp("ddpm"), *TINY, *DDPM, *changes, *short).path


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With classes."""
    changes = ["model=gan", "model.conditional=true", "data.eval_batch_size=20"]
    small = ["model.net.generator.channels=[8]", "model.net.discriminator.channels=[8]"]
    return train_in(tmp_path_factory.mktemp("gan"), *TINY, *changes, *small).path


@pytest.fixture
def copy(vae: Path, tmp_path: Path) -> Path:
    shutil.copytree(vae, tmp_path / "received" / vae.name)
    return tmp_path / "received" / vae.name


def export(run: Path, out: Path, *arguments: str) -> Path:
    assert cli.main(["export", str(run), "--out", str(out), *arguments]) == DONE
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence by which a command is refused."""
    assert cli.main(["export", *map(str, arguments)]) == REFUSED
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.mark.parametrize("model", ["vae", "ddpm"])
def test_an_export_is_the_model_to_the_last_bit(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(model)
    folder = export(run, tmp_path / "export")
    files = {path.name for path in folder.iterdir()}
    assert files == {"model.safetensors", "config.yaml", "spec.json", "README.md"}
    assert list(yaml.safe_load((folder / "config.yaml").read_text())) == ["model"]
    ours, theirs = genlab.load(run), genlab.load(folder)
    assert read_received(folder) == read_received(run)
    weights = theirs.state_dict()
    assert weights.keys() == ours.state_dict().keys()
    for name, weight in ours.state_dict().items():
        assert weight.dtype == weights[name].dtype and torch.equal(weight, weights[name]), name
    assert torch.equal(ours.sample(3, seed=1), theirs.sample(3, seed=1))


def test_an_export_holds_the_average_of_the_weights(vae: Path, tmp_path: Path) -> None:
    weights = load_file(
        export(vae, tmp_path / "export", "--checkpoint", "last") / "model.safetensors"
    )
    content = torch.load(vae / "checkpoints" / "last.ckpt", weights_only=True)
    for name, weight in weights.items():
        assert torch.equal(weight, content["state_dict"][f"model.{name}"])


def test_an_export_is_given_where_a_run_is(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(vae, tmp_path / "export")
    again = export(folder, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert cli.main(["sample", str(folder), "--n", "2", "--out", str(tmp_path / "drawn")]) == DONE
    begun = train_in(tmp_path / "runs", *TINY, f"init_from={folder}", "trainer.max_epochs=0")
    model, weights = genlab.load(begun), genlab.load(vae).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), "data=mnist_mini", "--batches", "1"]) == REFUSED
    assert capsys.readouterr().err.count("\n") == 1


def test_exports_of_different_weights_are_different_origins(vae: Path, tmp_path: Path) -> None:
    first = export(vae, tmp_path / "a" / "export")
    (tmp_path / "b").mkdir()
    shutil.copytree(first, tmp_path / "b" / "export")
    assert origin(str(first)) == origin(str(tmp_path / "b" / "export"))
    weights = load_file(first / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, tmp_path / "b/export/model.safetensors")
    assert origin(str(first)) != origin(str(tmp_path / "b" / "export"))


def test_a_default_name_tells_checkpoint_and_format(copy: Path) -> None:
    for arguments in ([], ["--checkpoint", "last"]):
        assert cli.main(["export", str(copy), *arguments]) == DONE
    made = sorted(path.name for path in (copy / "exports").iterdir())
    assert made == ["best-safetensors", "last-safetensors"]
    (copy / "checkpoints" / "best.ckpt").unlink()
    (copy / "checkpoints" / "last.ckpt").unlink()
    assert genlab.load(copy / "exports" / "best-safetensors").spec.classes == tuple("0123456789")


def test_the_card_tells_what_the_run_measured(vae: Path, tmp_path: Path) -> None:
    card = (export(vae, tmp_path / "export") / "README.md").read_text()
    result: Any = Run(vae).result
    nats = result["metrics"]["test/neg_elbo"]
    assert f"| Negative ELBO | {nats:.1f} nats per image | test/neg_elbo |" in card
    assert f"A VAE with {result['parameters']:,} parameters" in card
    assert (
        "1 x 28 x 28" in card
        and "the 10 classes 0, 1, 2" in card
        and "mnist_mini: images of" in card
    )
    assert "| model.kl_weight | 1 |" in card and "| ema_decay | 0.9 |" in card
    assert f"genlab {genlab.__version__}" in card
    assert "The weights here" not in card
    last = export(vae, tmp_path / "last", "--checkpoint", "last") / "README.md"
    assert "The weights here are those of the last one." in last.read_text()


def test_the_code_of_a_card_runs(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(vae, tmp_path / "path" / "to" / "this" / "folder")
    code = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert torch.equal(names["images"], genlab.load(vae).sample(16, seed=0))


def test_text_of_a_stranger_is_escaped_in_the_card(copy: Path, tmp_path: Path) -> None:
    evil = "a|b</td><script>`x`\n## Numbers\x1b[31m"
    spec = json.loads((copy / "spec.json").read_text())
    spec["classes"][0] = evil
    (copy / "spec.json").write_text(json.dumps(spec))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["name"] = config["seed"] = evil
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads((copy / "result.json").read_text())
    result["git_commit"] = result["versions"]["torch"] = evil
    result["metrics"][f"test/{evil}"] = 1.0
    (copy / "result.json").write_text(json.dumps(result))
    card = (export(copy, tmp_path / "export") / "README.md").read_text()
    assert "<script" not in card and "\x1b" not in card
    assert len(re.findall("^## Numbers", card, re.MULTILINE)) == card.count("## Numbers") == 1
    for row in re.findall(r"^\| .*", card, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4)


def test_a_folder_with_files_is_left_alone(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all")
    assert "give --out a new folder" in refused(capsys, vae, "--out", tmp_path / "full")
    assert "give --out a new folder" in refused(capsys, vae, "--out", tmp_path / "full/thesis.txt")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    export(vae, tmp_path / "empty")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_half_an_export_does_not_stay(
    error: BaseException, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> str:
        raise error

    monkeypatch.setattr(exporting, "model_card", fail)
    with pytest.raises(type(error)):
        exporting.export(vae, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next(vae: Path, tmp_path: Path) -> None:
    left, busy, other = (
        tmp_path / name for name in (".export.1234.tmp", ".export.5678.tmp", ".exports.tmp")
    )
    for folder in (left, busy, other):
        Lock(folder).open().close()
        (folder / "half").write_text("half")
    lock = Lock(busy).open()  # by an export to the same place that is not done
    exporting.export(vae, tmp_path / "export")
    lock.close()
    assert {path.name for path in tmp_path.iterdir()} == {"export", busy.name, other.name}
    assert not (tmp_path / "export" / ".lock").exists()


def test_a_folder_that_cannot_be_written_is_told(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file/export", "loop", "loop/export", "x" * 300):
        assert "give --out a folder" in refused(capsys, vae, "--out", tmp_path / name), name
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pickle"], "--format pickle: give one of safetensors"),
        (["--format", "safetensors,"], "--format : give one of"),
        (["--format", "safetensors,diffusers"], "a VAE has no U-Net"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(
    arguments: list[str], said: str, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, vae, "--out", tmp_path / "export", *arguments)
    assert list(tmp_path.iterdir()) == []


def diffusers_run(folder: Path, *overrides: str) -> Path:
    net = ["model/net=unet_diffusers", "model.net.channels=[8,8]", "model.net.head_channels=8"]
    small = [*DDPM[:-1], *net, "model.net.attention=[]", "model.val_draws=1", "model.test_draws=1"]
    return train_in(folder, *TINY, *small, *overrides).path


@pytest.mark.slow
def test_diffusers_draws_with_the_exported_model(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    run = diffusers_run(tmp_path, "model.sampler.clip=false", "ema_decay=0.9")
    folder = export(run, tmp_path / "path/to/this/folder", "--format", "diffusers,safetensors")
    pipeline: Any = DDPMPipeline.from_pretrained(folder)
    model = genlab.load(folder)
    x_t = torch.randn(3, 1, 28, 28)
    for i in (0, 7, 19):
        t = torch.full((3,), (i + 1) / 20, dtype=torch.float64)
        with torch.no_grad():
            output = pipeline.unet(x_t, i).sample
            ours = model.net(x_t, model.process.log_snr(t))
            x0_hat = model.predict(x_t, t).x0_hat
        torch.testing.assert_close(output, ours, rtol=0, atol=1e-5)
        step = pipeline.scheduler.step(output, i, x_t)
        torch.testing.assert_close(step.pred_original_sample, x0_hat, rtol=1e-4, atol=1e-4)
    code = re.search(
        r"```python\n(from diffusers.*?)\n```", (folder / "README.md").read_text(), re.S
    )
    assert code is not None
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(code[1], names)
    assert len(names["images"]) == 16 and names["images"][0].size == (28, 28)


@pytest.mark.slow
def test_a_card_says_why_there_is_no_scheduler(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    continuous = ["model.steps=null", "model/noise_schedule=linear_log_snr"]
    run = diffusers_run(tmp_path, *continuous, "model.conditional=true")
    folder = export(run, tmp_path / "export", "--format", "diffusers")
    assert {path.name for path in folder.iterdir()} == {"unet", "README.md"}
    card = (folder / "README.md").read_text()
    assert "There is no `scheduler/`: in continuous time" in card
    assert "25 (20 - s)" in card and "10 for none" in card
    net: Any = UNet2DModel.from_pretrained(folder, subfolder="unet")
    model, x_t = genlab.load(run), torch.randn(2, 1, 28, 28)
    s, labels = torch.tensor([-3.0, 5.0]), torch.tensor([3, -1])
    with torch.no_grad():
        theirs = net(x_t, 25 * (20 - s), torch.tensor([3, 10])).sample
        torch.testing.assert_close(theirs, model.net(x_t, s, labels), rtol=0, atol=1e-5)


def test_a_network_that_diffusers_does_not_have_is_refused(
    ddpm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, ddpm, "--out", tmp_path / "export", "--format", "diffusers")
    assert "--format diffusers" in said and "channels=8: " in said and "groups" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "ddpm", "gan"])
def test_onnxruntime_computes_the_networks(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run: Path = request.getfixturevalue(model)
    folder = export(run, tmp_path / "path/to/this/folder", "--format", "onnx")
    loaded = genlab.load(run)

    def outputs(name: str, **inputs: torch.Tensor) -> list[torch.Tensor]:
        content = (folder / f"{name}.onnx").read_bytes()
        assert str(Path(genlab.__file__).parent).encode() not in content
        session = onnxruntime.InferenceSession(content)
        given = {key: value.numpy() for key, value in inputs.items()}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    for n in (1, 5):
        x, z = torch.rand(n, 1, 28, 28), torch.randn(n, 20)
        log_snr, labels = torch.linspace(-9, 9, n), torch.arange(n) - 1
        with torch.no_grad():
            if model == "vae":
                q = loaded.encode(x)
                expected = [q.mean, q.stddev, loaded.decode(z).mean]
                found = [*outputs("encoder", x=x), *outputs("decoder", z=z)]
            elif model == "gan":
                z, labels = torch.randn(n, 64), torch.arange(n)
                expected = [((loaded.generate(z, labels) + 1) / 2).clamp(0, 1)]
                found = outputs("generator", z=z, labels=labels)
            else:
                expected = [loaded.net(x, log_snr, labels)]
                found = outputs("unet", x_t=x, log_snr=log_snr, labels=labels)
        for ours, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    code = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    names = {"x": x.numpy(), "x_t": x.numpy(), "log_snr": log_snr.numpy(), "labels": labels.numpy()}
    names["z"] = z.numpy()
    monkeypatch.chdir(tmp_path)
    exec(code[1], names)
    first = names[{"vae": "mean", "ddpm": "output", "gan": "image"}[model]]
    torch.testing.assert_close(torch.from_numpy(first), expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_told(
    package: str,
    vae: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(capsys, vae, "--out", tmp_path / "export", "--format", "onnx")
    assert "pip install 'genlab[onnx]'" in said
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_of_an_export_are_refused(vae: Path, tmp_path: Path) -> None:
    folder = export(vae, tmp_path / "export")
    path = folder / "model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)
    for damaged in (b"", whole[:-1], b"\xff" * 100, whole[:8] + b"[" + whole[9:], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(RunDirectoryError, match="holds no readable weights"):
            genlab.load(folder)
    first = sorted(weights)[0]
    save_file({name: w for name, w in weights.items() if name != first}, path)
    with pytest.raises(ConfigError, match="another architecture"):
        genlab.load(folder)
    save_file({**weights, first: weights[first].int()}, path)
    with pytest.raises(RunDirectoryError, match=re.escape(first)):
        genlab.load(folder)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunDirectoryError, match="bytes: at most"):
        genlab.load(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="is a link"):
        genlab.load(folder)
