"""Checks of devices: GPUs of this machine, and GPUs that a Prefect server counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from data.device import CPU, cuda_devices, devices_together, resolve_device
from data.errors import ConfigError, counted
from flows.execution.gpu import check_limit
from flows.preflight.machine import CAPTION_FACTOR, TRAIN_FACTOR
from flows.preflight.plan import Plan, message_of
from reid.config.train import FP16_PROBLEM

_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16"}


def device_problems(plan: Plan) -> Iterator[str]:
    """Yield devices that do not exist, for the stages that will run."""
    if "caption" in plan.stages:
        yield from message_of(lambda: resolve_device(plan.caption.local_device, plan.cuda, "caption.device"))
    if "train" in plan.stages:
        processes = plan.scale.train_processes
        yield from message_of(lambda: devices_together(plan.train.device, processes, plan.cuda, "train.device"))
    if "evaluate" in plan.stages:
        yield from message_of(lambda: resolve_device(plan.evaluate.device, plan.cuda, "evaluate.device"))


def precision_problems(plan: Plan) -> Iterator[str]:
    """Yield a training precision that the CPU does not support."""
    if "train" not in plan.stages or plan.train.precision != "fp16":
        return
    if plan.train.device == CPU or not cuda_devices(plan.cuda):
        yield FP16_PROBLEM


def worker_notices(plan: Plan) -> Iterator[str]:
    """Yield a notice if captioning workers on this machine wait for each other's GPU."""
    workers, device = plan.scale.caption_workers, plan.caption.local_device
    if "caption" not in plan.stages or workers <= 1 or plan.scale.runner == "ray" or device == CPU:
        return
    gpus = min(cuda_devices(plan.cuda), 1 if ":" in device else workers)
    if 0 < gpus < workers:
        yield f"scale.caption_workers={workers} share {counted(gpus, 'GPU')}; set scale.caption_workers={gpus}"


def limit_problems(plan: Plan) -> Iterator[str]:
    """Yield a limit of GPUs on the Prefect server for which training would wait forever. Needs that server."""
    processes, device = plan.scale.train_processes, plan.train.device
    if "train" in plan.stages and processes > 1 and device != CPU and cuda_devices(plan.cuda):
        yield from message_of(lambda: check_limit(processes))


def emulation_notices(plan: Plan) -> Iterator[str]:
    """Yield number formats that the device emulates, with the factor and the setting that avoids it."""
    if "caption" in plan.stages and plan.caption.engine == "transformers":
        dtype = plan.caption.number_format
        yield from _emulated(plan, plan.caption.device, dtype, f"caption.dtype={plan.caption.dtype}", CAPTION_FACTOR)
    for stage, device, precision in (
        ("train", plan.train.device, plan.train.precision),
        ("evaluate", plan.evaluate.device, plan.evaluate.precision),
    ):
        refused = stage == "train" and any(precision_problems(plan))
        if stage in plan.stages and precision != "no" and not refused:
            dtype = _DTYPES[precision]
            yield from _emulated(plan, device, dtype, f"{stage}.precision={precision}", TRAIN_FACTOR)


def _emulated(plan: Plan, device: str, dtype: str, setting: str, factor: float) -> Iterator[str]:
    """Yield a notice if `device` emulates `dtype`. setting: the one that selects it. factor: of the time on a CPU."""
    if dtype == "float32":
        return
    key = setting.partition("=")[0]
    instead = f"{key}={'float32' if key == 'caption.dtype' else 'no'}"
    where = device_of(plan, device)
    if where == CPU and plan.processor.emulates(dtype):
        said = f" ({dtype})" if setting.endswith("=auto") else ""
        yield (
            f"{setting}{said}: this processor does not have {dtype} instructions. It emulates them, which takes at "
            f"least {factor:g} times as long as float32: set {instead}{_price(key)}"
        )
    elif where is not None and where != CPU and dtype == "bfloat16" and not plan.cuda.computes_bf16(number_of(where)):
        other = f"{key}={'float16' if key == 'caption.dtype' else 'fp16'}"
        yield f"{setting}: {where} emulates bfloat16, which is slower than float16: set {other}"


def _price(key: str) -> str:
    """Return the price of float32 for a captioner."""
    return " (twice the memory; captions made in another format are not reused)" if key == "caption.dtype" else ""


def device_of(plan: Plan, device: str) -> str | None:
    """Return the device of this machine that a setting selects, or None if it does not exist."""
    try:
        return resolve_device(device, plan.cuda, "device")
    except ConfigError:
        return None


def number_of(device: str) -> int:
    """Return the number of a CUDA device, such as 1 for cuda:1."""
    return int(device.partition(":")[2] or 0)
