"""A compiled loss is the eager one, compiled once, and nothing in a step waits for a GPU."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conf_files import CONF
from interruption import MODELS, SMALL, assert_same, send, within_step
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.overrides import TorchFunctionMode
from trained_runs import train_in

from genlab.config.compose import compose
from genlab.errors import ConfigError
from genlab.modules.ddpm import DDPMModule
from genlab.protocols import ImageSpec
from genlab.seeding import BatchNoise
from genlab.training.run_config import RunConfig, build_model
from genlab.training.signals import Stopped

SPEC = ImageSpec(1, 4, 4, classes=("a", "b"))
X, LABELS = torch.rand(8, 1, 4, 4).mul(255).round() / 255, torch.arange(8) % 2
TINY = {
    "vae": ["model.net.encoder.hidden=[8]", "model.net.decoder.hidden=[8]", "model.latent_dim=2"],
    "ddpm": ["model=ddpm", "model/net=denoiser_mlp", "model.net.width=8", "model.net.blocks=1"],
}
RAMP = ["model/kl_schedule=linear", "model.kl_schedule.steps=4"]
CONTINUOUS = ["model.steps=null", "model.test_draws=4"]
SCHEDULES = sorted(path.stem for path in (CONF / "model/noise_schedule").glob("*.yaml"))
FINITE = {"edm", "learned", "linear_log_snr"}


def tiny(*overrides: str, spec: ImageSpec = SPEC) -> Any:
    """A model whose layers are not at their initial zeros."""
    torch.manual_seed(0)
    model = build_model(RunConfig.of(compose(["logger=none", *overrides])).model, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def of_step(model: Any, step: int = 0) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = model.loss(X, LABELS, step, BatchNoise(len(X), step))["loss"]
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def compile_whole(model: Any, **options: Any) -> None:
    torch.compiler.reset()
    for network in model.networks().values():
        network.compile(**options)
    model.compile(dynamic=False, fullgraph=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("family", TINY)
def test_a_compiled_loss_and_its_gradients_are_the_eager_ones(
    family: str, precision: str, tolerance: float
) -> None:
    model = tiny(*TINY[family])
    # one thread: a pool of processes would import torch anew
    with (
        inductor.patch(compile_threads=1),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        loss, gradients = of_step(model)
        compile_whole(model)
        compiled, others = of_step(model)
    torch.testing.assert_close(compiled, loss, rtol=tolerance, atol=0)
    whole, other = (torch.cat([g.flatten() for g in found]) for found in (gradients, others))
    assert float((whole - other).norm()) <= tolerance * float(whole.norm())


@pytest.mark.parametrize(
    "overrides",
    [
        [*TINY["vae"], *RAMP],
        [*TINY["vae"], "model/likelihood=gaussian_calibrated", "model/prior=vamp"],
        [*TINY["ddpm"], "model.conditional=true"],
        [*TINY["ddpm"], "model/reverse_variance=learned", "model/weighting=vlb"],
        [*TINY["ddpm"], *CONTINUOUS, "model/noise_schedule=learned", "model/weighting=vlb"],
        [*TINY["ddpm"], "model/time_sampler=importance", "model.time_sampler.bins=2"],
    ],
    ids=" ".join,
)
def test_a_loss_is_one_graph_that_is_compiled_once(overrides: list[str]) -> None:
    eager, compiled = tiny(*overrides), tiny(*overrides)
    compile_whole(compiled, backend="aot_eager")
    for step in range(6):
        loss, gradients = of_step(eager, step)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found, others = of_step(compiled, step)
        torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-5)


class Copies(TorchFunctionMode):
    """Names the functions by which numbers reach a device from another one, or from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type != "cpu":
            is_literal = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
            if is_literal or any(isinstance(a, Tensor) and a.device != out.device for a in args):
                self.found.append(func.__name__)
        return out


@pytest.mark.parametrize(
    "overrides",
    [
        *([*TINY["ddpm"], f"model/noise_schedule={name}"] for name in SCHEDULES),
        *([*TINY["ddpm"], f"model/noise_schedule={name}", *CONTINUOUS] for name in sorted(FINITE)),
        [*TINY["ddpm"], *CONTINUOUS, "model/noise_schedule=linear_log_snr", "model/weighting=vlb"],
        [*TINY["ddpm"], "model/time_sampler=logit_normal", "model.conditional=true"],
        [*TINY["vae"], *RAMP],
        [*TINY["vae"], "model/likelihood=discretized_logistic", "model/prior=vamp"],
    ],
    ids=" ".join,
)
def test_after_the_first_step_a_loss_copies_nothing_to_its_device(overrides: list[str]) -> None:
    """A GPU would wait for each such copy; "meta" is a device whose numbers cannot be read."""
    if "model/noise_schedule=learned" in overrides:
        overrides = [*overrides, *CONTINUOUS, "model/weighting=vlb"]
    if "model/noise_schedule=zero_terminal_snr" in overrides:
        overrides = [*overrides, "model/parameterization=v"]
    model = tiny(*overrides).to("meta")
    x, labels = X.to("meta"), LABELS.to("meta")
    for _ in range(2):
        with Copies() as copies:
            model.loss(x, labels, 1, BatchNoise(len(X), device="meta"))["loss"].backward()
    assert copies.found == []


def test_a_step_that_is_not_logged_reads_no_number_of_a_gpu() -> None:
    module = DDPMModule(tiny(*TINY["ddpm"]), torch.optim.Adam)
    rate = SimpleNamespace(param_groups=[{"lr": 0.1}])
    module._trainer = SimpleNamespace(optimizers=[rate], log_every_n_steps=50)  # type: ignore[assignment]
    terms = {"loss": torch.empty((), device="meta")}
    module.log_terms(terms, step=0)
    with pytest.raises(RuntimeError, match="meta"):
        module.log_terms(terms, step=49)


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Compile to graphs alone, which takes seconds less; the options of each compilation."""
    options: list[dict[str, Any]] = []

    def compile_graph(module: nn.Module, **given: Any) -> None:
        options.append(given)
        module._compiled_call_impl = torch.compile(  # type: ignore[assignment]
            module._call_impl, backend="aot_eager", dynamic=given.get("dynamic")
        )

    monkeypatch.setattr(nn.Module, "compile", compile_graph)
    torch.compiler.reset()
    return options


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vae", "ddpm"])
def test_a_compiled_run_is_the_eager_one_and_resumes_bit_for_bit(
    without_code: list[dict[str, Any]], tmp_path: Path, family: str
) -> None:
    """Weights are averaged and gradients clipped."""
    settings = [*SMALL, *MODELS[family], "trainer.gradient_clip_val=5", "trainer.max_epochs=2"]
    settings.append("trainer.deterministic=true")
    eager = train_in(tmp_path / "eager", *settings)
    assert without_code == []
    compiled = train_in(tmp_path / "compiled", *settings, "compile=reduce-overhead")
    assert without_code[0] == {"mode": "reduce-overhead", "dynamic": False}
    for ours, theirs in zip(compiled.metrics(), eager.metrics(), strict=True):
        for name, value in theirs.items():
            if name.startswith("train/") and not name.endswith(("per_second", "mfu")):
                assert ours[name] == pytest.approx(value, rel=1e-4), name

    with pytest.raises(Stopped), within_step(13, lambda: send(signal.SIGTERM)):
        train_in(tmp_path / "resumed", *settings, "compile=reduce-overhead")
    torch.compiler.reset()
    assert_same(train_in(tmp_path / "resumed", *settings, "compile=reduce-overhead"), compiled)


def test_a_mode_of_compilation_that_torch_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile='fast': choose one of false, true, default, "):
        RunConfig.of(compose(["logger=none", "compile=fast"]))
    with pytest.raises(ConfigError, match=r"compile=1: choose one of false, true, default, "):
        RunConfig.of(compose(["logger=none", "compile=1"]))


def test_what_needs_another_device_or_breaks_cuda_graphs_is_refused() -> None:
    graphs = ["compile=max-autotune", "trainer.accumulate_grad_batches=2"]
    with pytest.raises(ConfigError, match=r"compile=max-autotune: .*accumulate_grad_batches=2 "):
        RunConfig.of(compose(["logger=none", *graphs]))
    with pytest.raises(ConfigError, match=r"data\.device=cuda: this training is on the CPU"):
        RunConfig.of(compose(["logger=none", "data.device=cuda"]))
