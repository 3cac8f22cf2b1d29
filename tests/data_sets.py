"""Datasets of torch, as a user would write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

KINDS = ("pillow", "array", "tensor", "float tensor", "grey tensor")


class Levels(Dataset[Any]):
    """Image i, 4 x 6, is i in every pixel, with the label i mod 2."""

    classes = ("even", "odd")

    def __init__(self, images: int = 40, kind: str = "pillow", item: str = "pair") -> None:
        self.images, self.kind, self.item = images, kind, item
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        pixels = np.full((4, 6, 3), index, dtype=np.uint8)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        image = {
            "pillow": Image.fromarray(pixels),
            "array": pixels,
            "tensor": tensor,
            "float tensor": tensor / 255,
            "grey tensor": tensor[:1],
        }[self.kind]
        items = {
            "pair": (image, index % 2),
            "dict": {"image": image, "label": torch.tensor(index % 2)},
            "image": image,
        }
        return items[self.item]
