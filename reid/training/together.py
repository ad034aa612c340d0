"""The train stage in several processes of one launcher; only the first process writes the artifact."""

from __future__ import annotations

import shutil

from data.artifacts.store import Made
from data.process.environment import hidden_variables
from data.stages.stage import Plan, RunContext
from reid.training.stage import TrainStage


def train_together(stage: TrainStage, run: RunContext) -> Made:
    """Train `stage`, which has ``launched=True``, in this process and the others of its launcher.

    Only the first process takes the lock of the artifact; the others would wait for it forever. Raises the errors of
    `TrainStage.make`.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    from reid.training.device import training_device

    with hidden_variables(launched=True):
        # Without the flag, accelerate silently lets each process train on its own if it does not find a GPU.
        process = PartialState(cpu=training_device(stage.config).type == "cpu")
        plan = stage.plan(run)
        answer = [plan.find(run.store) if process.is_main_process else None]
        dist.broadcast_object_list(answer)
        if answer[0] is not None:
            return Made(ref=answer[0], cached=True)
        if process.is_main_process:
            answer = [plan.make(run).ref]
        else:
            _help(plan, run, process.process_index)
        dist.broadcast_object_list(answer)
        assert answer[0] is not None
        return Made(ref=answer[0], cached=False)


def _help(plan: Plan, run: RunContext, rank: int) -> None:
    """Take part in the training and delete what this process writes."""
    folder = run.store.scratch(plan.stage.name, f"{plan.fingerprint}.rank{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    plan.stage.produce(run, folder, run.store.scratch(plan.stage.name, plan.fingerprint))
    shutil.rmtree(folder)
