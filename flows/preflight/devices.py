"""Checks of devices: GPUs of this machine, and GPUs that a Prefect server counts."""

from __future__ import annotations

from collections.abc import Iterator

from data.device import CPU, cuda_devices, devices_together, resolve_device
from flows.execution.gpu import check_limit
from flows.preflight.plan import Plan, message_of
from reid.config.train import FP16_PROBLEM


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
    if "caption" not in plan.stages or workers == 1 or plan.scale.runner == "ray" or device == CPU:
        return
    gpus = min(cuda_devices(plan.cuda), 1 if ":" in device else workers)
    if 0 < gpus < workers:
        yield f"scale.caption_workers={workers} share {gpus} GPU(s); set scale.caption_workers={gpus}"


def limit_problems(plan: Plan) -> Iterator[str]:
    """Yield a limit of GPUs on the Prefect server for which training would wait forever. Needs that server."""
    processes, device = plan.scale.train_processes, plan.train.device
    if "train" in plan.stages and processes > 1 and device != CPU and cuda_devices(plan.cuda):
        yield from message_of(lambda: check_limit(processes))
