"""Rate of large matrix products on this device, the reference of the other benchmarks."""

from __future__ import annotations

import time

import torch

from data.device import CPU, resolve_device

DEVICE = resolve_device("auto", torch.cuda, "device")
ON_GPU = DEVICE != CPU


def matrix_rate(dtype: torch.dtype = torch.bfloat16, *, side: int = 8192 if ON_GPU else 2048, turns: int = 10) -> float:
    """Return the operations per second of a `side` x `side` matrix product in `dtype`, best of `turns`."""
    best = 0.0
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    for _ in range(turns):
        wait()
        started = time.perf_counter()
        left @ right
        wait()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def has_bf16() -> bool:
    """Return True if bf16 is about as fast as float32 here.

    A processor without bf16 instructions emulates them: a benchmark takes many times as long and measures nothing.
    """
    rates = {dtype: matrix_rate(dtype, side=512, turns=5) for dtype in (torch.float32, torch.bfloat16)}
    return rates[torch.bfloat16] >= 0.8 * rates[torch.float32]


def wait() -> None:
    """Wait until the device is idle: a GPU only queues its work."""
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)


def device_name() -> str:
    """Return the name of this device, for people."""
    return torch.cuda.get_device_name(DEVICE) if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
