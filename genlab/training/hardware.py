"""Peak FLOP/s of the hardware, for the model FLOPs utilisation (MFU) of a run."""

from __future__ import annotations

import time
from functools import cache

import torch

#: Dense peak rates in FLOP/s from the vendors' data sheets: (bf16 or fp16 tensor cores, tf32 off).
GPU_PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of `device` in `precision`; None for a GPU that is not in the table.

    The peak of a CPU is measured: the best of a few products of 1024 x 1024 matrices, in a tenth of
    a second, with the threads of the run.
    """
    half = "16" in precision
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, (low, full) in GPU_PEAKS.items():
            if key in name:
                return low if half else full
        return None
    if device.type == "cpu":
        return _measured_cpu_peak(torch.bfloat16 if half else torch.float32)
    return None


@cache
def _measured_cpu_peak(dtype: torch.dtype, size: int = 1024) -> float:
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
