"""The train stage in several processes of one launcher: the first process owns the artifact, the others help."""

from __future__ import annotations

import shutil

from data.artifacts.store import Made
from data.process.environment import hidden_variables
from data.stages.stage import Plan, RunContext
from reid.training.stage import TrainStage


def train_together(stage: TrainStage, run: RunContext) -> Made:
    """Train `stage`, which was built with ``launched=True``, in this process and in those started beside it.

    Only the first process takes the lock of the store; the others would wait for it in vain. Raises what
    `TrainStage.make` raises.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    from reid.training.device import training_device

    with hidden_variables(launched=True):
        # Without the flag accelerate would find no GPU and let every process train for itself, without a word.
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
    """Take part in the training; what this process writes is thrown away."""
    folder = run.store.scratch(plan.stage.name, f"{plan.fingerprint}.rank{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    plan.stage.produce(run, folder, run.store.scratch(plan.stage.name, plan.fingerprint))
    shutil.rmtree(folder)
