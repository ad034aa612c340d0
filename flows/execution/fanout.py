"""Captioning by several workers of one run: threads, processes, or a Ray cluster.

The workers claim images in the caption store, so the work need not be divided. The caption stage collects the results.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from prefect import task
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from captioning.config import CaptionConfig
from captioning.stage.stage import caption_part
from data.device import cuda_devices
from data.errors import ClipScgiError, ConfigError
from data.process.children import follow, shielded
from data.stages.stage import RunContext
from flows.execution.gpu import gpu_slot, uses_gpu
from flows.execution.ui import progress_artifact
from flows.interrupts import stop_on_terminate
from flows.recipes import ScaleConfig
from flows.terminal import progress_bar


@task(name="caption-worker", task_run_name="caption-worker-{worker}", persist_result=False, retries=0)
def caption_worker(*, run: RunContext, config: CaptionConfig, worker: int) -> int:
    """Caption the images that no other worker has claimed, on its own GPU if possible; return their number."""
    name = f"caption-{worker}"
    config = config.model_copy(update={"device": device_of(config.local_device, worker)})
    slot = gpu_slot(config.local_device, "caption.device")
    try:
        with slot, progress_bar(name) as bar, progress_artifact(name, bar) as progress:
            done = caption_part(run.with_progress(progress), config)
    except KeyboardInterrupt:
        # A pool prints a traceback for anything that is not an Exception.
        raise ClipScgiError(f"{name} was stopped; its captions are kept") from None
    return done.generated


def caption_together(run: RunContext, scale: ScaleConfig, config: CaptionConfig) -> int:
    """Caption the images of `run` with `scale.caption_workers` workers; return the number of captions generated."""
    with task_runner(scale) as runner:
        with shielded():
            futures = [
                runner.submit(caption_worker, parameters={"run": run, "config": config, "worker": worker})
                for worker in range(scale.caption_workers)
            ]
        try:
            return sum(future.result() for future in futures)
        except BaseException:
            # The runner waits for its workers, which would continue captioning.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin_worker(parent: int) -> None:
    """Set up a captioning process: it ends with its parent and saves its captions on SIGTERM."""
    follow(parent)
    stop_on_terminate()


def task_runner(scale: ScaleConfig) -> TaskRunner[Any]:
    """Return the task runner of `scale`. Raises ConfigError if Ray is selected but not installed."""
    if scale.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=scale.caption_workers)
    if scale.runner == "processes":
        return ProcessPoolTaskRunner(
            max_workers=scale.caption_workers, initializer=_begin_worker, initargs=(os.getpid(),)
        )
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError(
            "scale.runner=ray: Ray is not installed; run pip install 'clip-scgi[ray]', or set scale.runner=processes"
        ) from error
    return RayTaskRunner()


def device_of(device: str, worker: int) -> str:
    """Return the device of one worker: the next GPU of this machine in turn, unless `device` names one."""
    if device not in ("auto", "cuda") or not uses_gpu(device, "caption.device"):
        return device
    import torch

    return f"cuda:{worker % cuda_devices(torch.cuda)}"
