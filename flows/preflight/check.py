"""What can be known to fail before the hours are spent: settings, index and machine against the stages that will run.

Each check is a small function that yields problems. All problems are raised together, each with the full key of a
setting and a value that works. No model is loaded, except a weights file of the user's whose fault would otherwise show
after captioning. What depends on captions is not known yet: whether enough images have one is checked when training
begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.captioner import local_folder
from captioning.config import CaptionConfig
from captioning.hub import check_available
from captioning.model_folder import check_folder, check_settings
from captioning.stage.stage import caption_ingredients
from data.artifacts.stages import STAGES, StageName
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.device import CPU, Cuda, cuda_devices, devices_together, resolve_device
from data.errors import ClipScgiError, ConfigError, raise_problems
from data.people import is_junk
from flows.execution.gpu import ensure_limit
from flows.preflight.disk import space_problems
from flows.recipes import Recipe
from flows.scale import ScaleConfig
from reid.config.evaluate import EvaluateConfig
from reid.config.train import FP16_PROBLEM, TrainConfig
from reid.evaluation.stage import evaluate_ingredients
from reid.inputs.evaluation_rows import check_test_split, has_match
from reid.inputs.training_rows import batch_problems, held_out_identities
from reid.models.weights_source import read_source
from reid.training.stage import train_ingredients

Ints = NDArray[np.int64]
_SHOWN: Final = 5
_FOLDERS: Final = ("stages", "work", "locks", "captions")


class IndexRows(NamedTuple):
    """Columns of images.parquet, [N] each, junk left out."""

    split: NDArray[np.object_]
    pid: Ints
    camid: Ints

    def of(self, *splits: str) -> IndexRows:
        """Return the rows of some splits."""
        chosen = np.isin(self.split.astype(str), splits)
        return IndexRows(self.split[chosen], self.pid[chosen], self.camid[chosen])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is about to run. stages: those that will run because no artifact replaces them."""

    store: ArtifactStore
    images: ArtifactRef
    caption: CaptionConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    scale: ScaleConfig
    stages: frozenset[str]
    cuda: Cuda

    @cached_property
    def rows(self) -> IndexRows:
        """The indexed images."""
        table = pq.read_table(self.images.folder / "images.parquet", columns=["split", "pid", "camid"])
        split, pid, camid = (table[name].to_numpy() for name in table.column_names)
        kept = ~is_junk(pid)
        return IndexRows(split[kept], pid[kept], camid[kept])


Check = Callable[[Plan], Iterator[str]]


# Devices and processes ------------------------------------------------------------------------------------


def device_problems(plan: Plan) -> Iterator[str]:
    """Yield devices that do not exist, for the stages that will run."""
    if "caption" in plan.stages:
        yield from _told(lambda: resolve_device(plan.caption.local_device, plan.cuda, "caption.device"))
    if "train" in plan.stages:
        processes = plan.scale.train_processes
        yield from _told(lambda: devices_together(plan.train.device, processes, plan.cuda, "train.device"))
    if "evaluate" in plan.stages:
        yield from _told(lambda: resolve_device(plan.evaluate.device, plan.cuda, "evaluate.device"))


def precision_problems(plan: Plan) -> Iterator[str]:
    """Yield a training precision that the CPU does not have."""
    if "train" not in plan.stages or plan.train.precision != "fp16":
        return
    if plan.train.device == CPU or not cuda_devices(plan.cuda):
        yield FP16_PROBLEM


def worker_problems(plan: Plan) -> Iterator[str]:
    """Yield a task runner that is not installed."""
    wanted = "caption" in plan.stages and plan.scale.caption_workers > 1 and plan.scale.runner == "ray"
    if wanted and find_spec("prefect_ray") is None:
        yield "scale.runner=ray is not installed: pip install 'clip-scgi[ray]', or set scale.runner=processes"


def worker_notices(plan: Plan) -> Iterator[str]:
    """Yield a notice where captioning workers on this machine wait for each other's GPU."""
    workers, device = plan.scale.caption_workers, plan.caption.local_device
    if "caption" not in plan.stages or workers == 1 or plan.scale.runner == "ray" or device == CPU:
        return
    gpus = min(cuda_devices(plan.cuda), 1 if ":" in device else workers)
    if 0 < gpus < workers:
        yield f"scale.caption_workers={workers} share {gpus} GPU(s); set scale.caption_workers={gpus}"


# Training -------------------------------------------------------------------------------------------------


def identity_problems(plan: Plan) -> Iterator[str]:
    """Yield a training split that does not fill a batch, held-out identities and processes taken into account."""
    if "train" in plan.stages:
        yield from batch_problems(plan.rows.of("train").pid, plan.train, plan.scale.train_processes)


def validation_problems(plan: Plan) -> Iterator[str]:
    """Yield an evaluation during training that could measure nothing."""
    validation, rows = plan.train.validation, plan.rows
    if "train" not in plan.stages or not validation.every:
        return
    if not validation.holds_out:
        query, gallery = rows.of("query"), rows.of("gallery")
        lacking = [name for name, part in (("query", query), ("gallery", gallery)) if not len(part.pid)]
        if lacking:
            yield (
                f"train.validation.images=test needs query and gallery images, and the data set has none in "
                f"{', '.join(lacking)}: set train.validation.images=held_out, or train.validation.every=0"
            )
        elif not has_match(query.pid, query.camid, gallery.pid, gallery.camid, "none").any():
            yield (
                "train.validation.images=test finds no query with a gallery image of the same identity: set "
                "train.validation.images=held_out, or train.validation.every=0"
            )
        return
    train = rows.of("train").pid
    if batch_problems(train, plan.train):
        return  # said already
    held_out = held_out_identities(train, plan.train)
    _, counts = np.unique(train[np.isin(train, sorted(held_out))], return_counts=True)
    if counts.max(initial=0) < 2:
        yield (
            f"train.validation.held_out={plan.train.validation.held_out:g} holds out identities with one image each, "
            "which cannot be searched: set train.validation.every=0"
        )


def camera_problems(plan: Plan) -> Iterator[str]:
    """Yield test cameras without an embedding (SIE), where the test images will be encoded."""
    during = plan.train.validation.every and not plan.train.validation.holds_out and "train" in plan.stages
    if not plan.train.sie or not ("evaluate" in plan.stages or during):
        return
    known, wanted = (set(plan.rows.of(*splits).camid.tolist()) for splits in (("train",), ("query", "gallery")))
    unseen = sorted(wanted - known)
    if unseen:
        shown = ", ".join(map(str, unseen[:_SHOWN])) + (", ..." if len(unseen) > _SHOWN else "")
        yield (
            f"train.sie={plan.train.sie:g} learns an embedding per camera, and {len(unseen)} camera(s) of the test "
            f"images ({shown}) have no training image: set train.sie=0"
        )


def backbone_problems(plan: Plan) -> Iterator[str]:
    """Yield a weights file of the backbone that does not exist or does not fit."""
    if {"train", "evaluate"} & plan.stages:
        yield from _told(lambda: _check_backbone(plan))


def _check_backbone(plan: Plan) -> None:
    config = plan.train.backbone
    read_source(config)  # from the header alone
    if config.is_file and {"caption", "train"} <= plan.stages:
        # Loading it takes seconds; a missing tensor or a NaN found by training would cost the hours of captioning.
        from reid.models.backbone import build_backbone

        build_backbone(config)


def prompt_length_problems(plan: Plan) -> Iterator[str]:
    """Yield learned prompts that are longer than the text tower takes."""
    if "train" in plan.stages and plan.train.method == "clip_reid":
        from reid.models.prompts import prompt_problems

        yield from prompt_problems(plan.train)


def log_problems(plan: Plan) -> Iterator[str]:
    """Yield a TensorBoard folder that cannot be written."""
    if "train" not in plan.stages or not plan.train.tensorboard:
        return
    if find_spec("tensorboard") is None:
        yield 'train.tensorboard needs tensorboard, which is not installed: set train.tensorboard=""'
    elif not writable(Path(plan.train.tensorboard)):
        yield f"train.tensorboard={plan.train.tensorboard} cannot be written: set it to a folder of your own"


# Captioning, evaluation -----------------------------------------------------------------------------------


def captioner_problems(plan: Plan) -> Iterator[str]:
    """Yield a model folder that is not there or lacks files, and a server's key that is not set; loads no model."""
    if "caption" not in plan.stages:
        return
    if plan.caption.engine == "transformers":
        yield from _told(lambda: _check_model_folder(plan.caption))
        return
    variable = plan.caption.server.key_variable
    if variable and not os.environ.get(variable):
        yield (
            f"caption.server.key_variable={variable}: that environment variable is not set; put the API key of the "
            "server there, or set caption.server.key_variable=null"
        )


def _check_model_folder(config: CaptionConfig) -> None:
    folder = local_folder(config.model)
    if folder is None:  # a hub id is fetched when captioning begins
        check_available(config.model, config.revision)
    else:
        check_folder(folder)
        check_settings(folder, config)


def evaluation_problems(plan: Plan) -> Iterator[str]:
    """Yield a test split that `evaluate` cannot use: no query, no gallery, no query with a match."""
    if "evaluate" in plan.stages:
        yield from _told(lambda: check_test_split(plan.images, plan.evaluate))


def evaluation_notices(plan: Plan) -> Iterator[str]:
    """Yield notices about queries that `evaluate` will skip."""
    if "evaluate" in plan.stages:
        yield from check_test_split(plan.images, plan.evaluate)


# The disk -------------------------------------------------------------------------------------------------


def disk_problems(plan: Plan) -> Iterator[str]:
    """Yield an artifact root that cannot be written or is too small for what is not there yet."""
    if not plan.stages:
        return
    root = plan.store.root
    closed = [folder for folder in (root, *(root / name for name in _FOLDERS)) if not writable(folder)]
    if closed:
        yield f"the artifact root cannot be written ({closed[0]}): set --home to a folder of your own"
    else:
        yield from space_problems(plan.store, plan.images, plan.rows.split, _settings(plan), plan.stages)


def _settings(plan: Plan) -> tuple[TrainConfig, EvaluateConfig]:
    return plan.train, plan.evaluate


def writable(folder: Path) -> bool:
    """Return True if files can be made in `folder`, which may have to be made first."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def check_output(path: Path, option: str, *, suffixes: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless the file (or, without `suffixes`, the folder) that `option` names can be written."""
    where = f"{option} {path}"
    if suffixes and path.suffix.lower() not in suffixes:
        example = f"{option} {path.with_suffix(suffixes[0])}"
        raise ConfigError(f"{where}: the name must end in {' or '.join(suffixes)}, such as {example}")
    if suffixes and path.is_dir():
        raise ConfigError(f"{where} is a folder: give the name of a file")
    if not writable(path.parent if suffixes else path):
        raise ConfigError(f"{where} cannot be written: give a place in a folder of your own")


CHECKS: Final[tuple[Check, ...]] = (
    device_problems,
    precision_problems,
    worker_problems,
    captioner_problems,
    backbone_problems,
    prompt_length_problems,
    identity_problems,
    validation_problems,
    camera_problems,
    evaluation_problems,
    log_problems,
    disk_problems,
)
NOTICES: Final[tuple[Check, ...]] = (worker_notices, evaluation_notices)


def problems_of(plan: Plan) -> list[str]:
    """Return everything that is wrong with `plan`, each problem once."""
    return list(dict.fromkeys(problem for check in CHECKS for problem in check(plan)))


def notices_of(plan: Plan) -> list[str]:
    """Return what a person should know before `plan` runs."""
    return [notice for check in NOTICES for notice in check(plan)]


# Runs -----------------------------------------------------------------------------------------------------


def check_run(store: ArtifactStore, recipe: Recipe, images: ArtifactRef, until: StageName) -> list[str]:
    """Return notices about the stages of `recipe` after its index, up to `until`; raise ConfigError for all problems.

    Stages whose artifact is there are not checked, so that a run that finds everything needs no GPU and no space.
    """
    plan = Plan(
        store=store,
        images=images,
        caption=recipe.caption,
        train=recipe.train,
        evaluate=recipe.evaluate,
        scale=recipe.scale,
        stages=frozenset(_missing(store, recipe, images, planned(recipe, until))),
        cuda=torch_cuda(),
    )
    raise_problems(f"recipe {recipe.name}", [*problems_of(plan), *_limit_problems(plan)], ConfigError)
    return notices_of(plan)


def _limit_problems(plan: Plan) -> Iterator[str]:
    """Yield a limit of GPUs on the Prefect server that training could wait for without end."""
    processes, device = plan.scale.train_processes, plan.train.device
    if "train" in plan.stages and processes > 1 and device != CPU and cuda_devices(plan.cuda):
        yield from _told(lambda: ensure_limit(processes))


def check_devices(store: ArtifactStore, recipe: Recipe, until: StageName) -> None:
    """Raise ConfigError for devices that do not exist, of stages that will run for certain: before the index."""
    fresh = frozenset(name for name in planned(recipe, until) if not (store.root / "stages" / name).exists())
    plan = Plan(
        store=store,
        images=ArtifactRef(stage="index", fingerprint="", content="", path=""),
        caption=recipe.caption,
        train=recipe.train,
        evaluate=recipe.evaluate,
        scale=recipe.scale,
        stages=fresh,
        cuda=torch_cuda(),
    )
    found = [*device_problems(plan), *precision_problems(plan)]
    raise_problems(f"recipe {recipe.name}", found, ConfigError)


def planned(recipe: Recipe, until: StageName) -> tuple[StageName, ...]:
    """Return the stages after the index that a run of `recipe` up to `until` consists of, in order."""
    reads_captions = recipe.train.needs_captions or until in ("caption", "audit")
    wanted = STAGES[1:] if reads_captions else STAGES[3:]
    return tuple(name for name in wanted if STAGES.index(name) <= STAGES.index(until))


def _missing(store: ArtifactStore, recipe: Recipe, images: ArtifactRef, stages: tuple[StageName, ...]) -> Iterator[str]:
    """Yield those of `stages` without an artifact; one that depends on a missing one is taken for missing."""
    captions = model = None
    if "caption" in stages:
        captions = _found(store, "caption", lambda: caption_ingredients(store, images=images, config=recipe.caption))
        if captions is None:
            yield "caption"
    if "train" in stages and (captions is not None or not recipe.train.needs_captions):
        what: dict[str, Any] = {"images": images, "captions": captions, "config": recipe.train}
        model = _found(store, "train", lambda: train_ingredients(store, **what))
    if "train" in stages and model is None:
        yield "train"
    if "evaluate" not in stages:
        return
    if model is None or not _found(
        store, "evaluate", lambda: evaluate_ingredients(store, images=images, model=model, config=recipe.evaluate)
    ):
        yield "evaluate"


def _found(store: ArtifactStore, stage: str, ingredients: Callable[[], Mapping[str, Any]]) -> ArtifactRef | None:
    try:
        return store.find(stage, fingerprint_of(stage, ingredients()))
    except ClipScgiError:
        return None  # weights that are not there: their own check says so


def _told(work: Callable[[], object]) -> Iterator[str]:
    """Yield the message of the error that a person can act on, if `work` raises one."""
    try:
        work()
    except ClipScgiError as error:
        yield str(error)


def torch_cuda() -> Cuda:
    """Return ``torch.cuda``, loaded when it is first asked."""
    return _LazyCuda()


class _LazyCuda:
    """``torch.cuda`` for checks that may not need it: a run that finds everything loads no torch."""

    def is_available(self) -> bool:
        import torch

        cuda: Cuda = torch.cuda
        return cuda_devices(cuda) > 0

    def device_count(self) -> int:
        import torch

        return cuda_devices(torch.cuda)
