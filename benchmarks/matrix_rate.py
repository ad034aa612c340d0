"""How fast this device multiplies large matrices in bf16: what the other benchmarks take shares of."""

from __future__ import annotations

import time

import torch

from data.device import CPU, resolve_device

DEVICE = resolve_device("auto", torch.cuda, "device")
ON_GPU = DEVICE != CPU


def matrix_rate() -> float:
    """Return the operations a second of a bf16 matrix product, best of several."""
    side, best = 8192 if ON_GPU else 2048, 0.0
    left, right = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        wait()
        started = time.perf_counter()
        left @ right
        wait()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def wait() -> None:
    """Wait for the device: a GPU only queues its work."""
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)


def device_name() -> str:
    """Return what people call this device."""
    return torch.cuda.get_device_name(DEVICE) if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
