"""Check everything that can be known to fail before hours are spent: all problems of a run, raised together.

Each check is a small function that yields problems, each with the full key of a setting and a value that works. No
model is loaded, except from a weights file of the user's whose faults would otherwise show after captioning. What
depends on captions is not known yet: training checks, when it begins, if enough images have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from captioning.stage.stage import CaptionStage
from data.artifacts.stages import STAGES, StageName
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ClipScgiError, ConfigError, raise_problems
from data.stages.stage import RunContext, Stage
from flows.preflight.dataset import (
    camera_problems,
    evaluation_notices,
    evaluation_problems,
    identity_problems,
    validation_problems,
)
from flows.preflight.devices import device_problems, limit_problems, precision_problems, worker_notices
from flows.preflight.disk import disk_problems
from flows.preflight.plan import Check, Plan
from flows.preflight.settings import key_problems, log_problems, prompt_length_problems, runner_problems
from flows.preflight.weights import backbone_problems, captioner_problems
from flows.recipes import Recipe
from reid.evaluation.stage import EvaluateStage
from reid.training.stage import TrainStage

CHECKS: Final[tuple[Check, ...]] = (
    device_problems,
    precision_problems,
    runner_problems,
    key_problems,
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


def check_run(run: RunContext, recipe: Recipe, until: StageName) -> list[str]:
    """Return notices about the stages of `recipe` after its index, up to `until`; raise ConfigError for all problems.

    Stages that have an artifact are not checked, so a run that finds all of them needs neither a GPU nor space.
    """
    plan = _plan(run, recipe, _missing(run, recipe, planned(recipe, until)))
    raise_problems(f"recipe {recipe.name}", [*problems_of(plan), *limit_problems(plan)], ConfigError)
    return notices_of(plan)


def check_devices(store: ArtifactStore, recipe: Recipe, until: StageName) -> None:
    """Raise ConfigError for devices that do not exist, of the stages of which no artifact exists at all.

    Needs no index, so that it can run before it.
    """
    stages = (name for name in planned(recipe, until) if not (store.root / "stages" / name).exists())
    plan = _plan(RunContext(store=store), recipe, stages)
    raise_problems(f"recipe {recipe.name}", [*device_problems(plan), *precision_problems(plan)], ConfigError)


def _plan(run: RunContext, recipe: Recipe, stages: Iterator[StageName]) -> Plan:
    return Plan(
        run=run,
        caption=recipe.caption,
        train=recipe.train,
        evaluate=recipe.evaluate,
        scale=recipe.scale,
        stages=frozenset(stages),
    )


def planned(recipe: Recipe, until: StageName) -> tuple[StageName, ...]:
    """Return the stages after the index that a run of `recipe` up to `until` consists of, in order."""
    reads_captions = recipe.train.needs_captions or until in ("caption", "audit")
    wanted = STAGES[1:] if reads_captions else STAGES[3:]
    return tuple(name for name in wanted if STAGES.index(name) <= STAGES.index(until))


def _missing(run: RunContext, recipe: Recipe, stages: tuple[StageName, ...]) -> Iterator[StageName]:
    """Yield those of `stages` without an artifact; a stage that depends on a missing one counts as missing."""
    captions = model = None
    if "caption" in stages:
        captions = _found(CaptionStage(config=recipe.caption), run)
        if captions is None:
            yield "caption"
    if "train" in stages and (captions is not None or not recipe.train.needs_captions):
        model = _found(TrainStage(captions=captions, config=recipe.train), run)
    if "train" in stages and model is None:
        yield "train"
    if "evaluate" not in stages:
        return
    if model is None or not _found(EvaluateStage(model=model, config=recipe.evaluate), run):
        yield "evaluate"


def _found(stage: Stage, run: RunContext) -> ArtifactRef | None:
    try:
        return stage.find(run)
    except ClipScgiError:
        return None  # weights that do not exist: their own check reports them
