"""Models and checkpoints, as safetensors and JSON without pickle.

A checkpoint is a folder ``step-<number>``, renamed when finished, so that it is complete or absent:

    model.safetensors      what training changes (frozen parameters come from the weights)
    optimizer.safetensors  Adam's state, "<parameter>/<exp_avg | exp_avg_sq | step>"
    state.json             counters, sums and the gradient scaler; JSON keeps floats exactly

If a run keeps its best epoch, the best weights so far are in ``best-<epoch>.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import DataError, WeightsError
from data.files import atomic_path, read_json, sync_file, sync_folder, write_json
from reid.config.backbone import RANDOM, BackboneConfig
from reid.config.train import TrainConfig
from reid.config.trained import CONFIG_FILE, read_trained, trained_config
from reid.models.loading import check_finite
from reid.tasks.base import Task
from reid.tasks.build import build_task

MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
STATE: Final = "state.json"


@dataclass(kw_only=True)
class CheckpointState:
    """Everything that a resumed run needs besides tensors, as JSON values; loops with more than a counter extend it."""

    step: int = 0
    """Finished steps of the run."""


S = TypeVar("S", bound=CheckpointState)


def _tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def save_model(path: Path, task: nn.Module) -> None:
    """Write all parameters and buffers of `task`, including frozen ones, so that the file is self-contained."""
    with atomic_path(path) as temporary:
        save_file(_tensors(task.state_dict()), temporary)


def load_task(folder: Path, device: str = "cpu") -> Task:
    """Load the trained task of a train artifact in evaluation mode, without the original CLIP weights.

    Raises:
        WeightsError: the file is missing, damaged, or of another model than config.json describes.
    """
    described = read_trained(folder)
    config = trained_config(described)
    backbone = BackboneConfig(**{**config.backbone.model_dump(), "weights": RANDOM, "source_grid": None})
    path = folder / MODEL
    try:
        state = load_file(path)
        cameras = state["camera_ids_K"].tolist() if config.sie else ()
        changed = config.model_copy(update={"backbone": backbone})
        task = build_task(changed, identities=len(described["identities"]), cameras=cameras)
        task.load_state_dict(state)
        check_finite(state, str(path))
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path} is not the model that {CONFIG_FILE} beside it describes ({detail}); train again"
        ) from (error)
    return task.to(device).eval()


def load_untrained(config: TrainConfig, device: str = "cpu") -> Task:
    """Return the task before training: CLIP as it is. Only its encoders `image` and joint are meaningful."""
    plain = config.model_copy(update={"method": "clip_baseline", "sie": 0.0, "retrieval_head": "joint"})
    return build_task(plain, identities=2).to(device).eval()


def save_checkpoint(root: Path, task: nn.Module, optimizer: torch.optim.Optimizer, state: CheckpointState) -> None:
    """Write the checkpoint of `state` under `root` and remove older ones."""
    final = root / f"step-{state.step:09d}"
    temporary = root / f".{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(_changing(task), temporary / MODEL)
    save_file(_optimizer_tensors(optimizer), temporary / OPTIMIZER)
    write_json(temporary / STATE, asdict(state))
    for name in (MODEL, OPTIMIZER):
        sync_file(temporary / name)
    sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(root)
    for older in _checkpoints(root)[:-1]:
        shutil.rmtree(older)


def restore_checkpoint(root: Path, task: nn.Module, optimizer: torch.optim.Optimizer, kind: type[S]) -> S:
    """Load the newest checkpoint under `root` into `task` and `optimizer`, and return its state.

    Without a checkpoint nothing is loaded, and the state is a new `kind`.

    Raises:
        DataError: the checkpoint belongs to another model or is damaged; the message names the folder to delete.
    """
    found = _checkpoints(root)
    if not found:
        return kind()
    folder = found[-1]
    try:
        state = kind(**read_json(folder / STATE))
        missing, unknown = task.load_state_dict(load_file(folder / MODEL), strict=False)
        if unknown or set(missing) != _frozen(task):
            raise DataError("its parameters differ from those of the model")
        _restore_optimizer(optimizer, load_file(folder / OPTIMIZER))
    except (DataError, KeyError, OSError, RuntimeError, SafetensorError, TypeError) as error:
        raise DataError(
            f"the checkpoint {folder} cannot be used ({error}); delete that folder and run again"
        ) from error
    return state


def save_best(root: Path, task: nn.Module, epoch: int) -> None:
    """Write what training changes in `task`, as of `epoch`, beside the checkpoints under `root`."""
    with atomic_path(_best(root, epoch)) as temporary:
        save_file(_changing(task), temporary)


def load_best(root: Path, task: nn.Module, epoch: int) -> None:
    """Load what `save_best` wrote for `epoch` into `task`."""
    task.load_state_dict(load_file(_best(root, epoch)), strict=False)


def drop_best(root: Path, *, but: int) -> None:
    """Delete the best weights of all epochs except `but`."""
    for path in sorted(root.glob("best-*.safetensors")):
        if path != _best(root, but):
            path.unlink()


def _best(root: Path, epoch: int) -> Path:
    return root / f"best-{epoch:05d}.safetensors"


def _changing(task: nn.Module) -> dict[str, Tensor]:
    frozen = _frozen(task)
    return _tensors({name: value for name, value in task.state_dict().items() if name not in frozen})


def _checkpoints(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"))


def _frozen(task: nn.Module) -> set[str]:
    return {name for name, parameter in task.named_parameters() if not parameter.requires_grad}


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return _tensors(
        {f"{name}/{key}": value for name, p in _named(optimizer) for key, value in optimizer.state[p].items()}
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(_named(optimizer))
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        parameter = parameters[name]
        # Fused Adam needs the step count on the parameter's device, too.
        optimizer.state[parameter][key] = value.to(parameter.device)
