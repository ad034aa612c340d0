"""Captioning by several workers of one run: threads, processes, or a Ray cluster.

The workers claim images in the caption store, so nobody has to divide the work; the caption stage then finds all there.
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
    """Caption what no other worker has claimed, on a GPU of its own where there are several; return how many."""
    name = f"caption-{worker}"
    config = config.model_copy(update={"device": device_of(config.local_device, worker)})
    slot = gpu_slot(config.local_device, "caption.device")
    try:
        with slot, progress_bar(name) as bar, progress_artifact(name, bar) as progress:
            done = caption_part(run.with_progress(progress), config)
    except KeyboardInterrupt:
        # A pool prints the traceback of what is not an Exception.
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
            # The runner waits for its workers, which would go on captioning.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin_worker(parent: int) -> None:
    """Prepare a captioning process: it ends with its parent, and on SIGTERM it saves its captions."""
    follow(parent)
    stop_on_terminate()


def task_runner(scale: ScaleConfig) -> TaskRunner[Any]:
    """Return the task runner that `scale` names. Raises ConfigError where Ray is wanted and not installed."""
    if scale.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=scale.caption_workers)
    if scale.runner == "processes":
        return ProcessPoolTaskRunner(
            max_workers=scale.caption_workers, initializer=_begin_worker, initargs=(os.getpid(),)
        )
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError("scale.runner is ray, which is not installed: pip install 'clip-scgi[ray]'") from error
    return RayTaskRunner()


def device_of(device: str, worker: int) -> str:
    """Return the device of one worker: the GPUs of this machine in turn, unless one is named."""
    if device not in ("auto", "cuda") or not uses_gpu(device, "caption.device"):
        return device
    import torch

    return f"cuda:{worker % cuda_devices(torch.cuda)}"
