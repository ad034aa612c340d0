"""The rules that a run must pass before hours are spent, and the check of a run after its index.

Each rule is a small function that yields problems, each with the full key of a setting and a value that works. No model
is loaded: weights are judged by their headers, their configs and their bytes. What depends on captions is not known
yet: training checks, when it begins, if enough images have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from captioning.corrections.stage import CorrectStage, find_captions
from captioning.stage.stage import CaptionStage
from data.artifacts.stages import STAGES, StageName
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.errors import ClipScgiError, ConfigError, raise_problems
from data.stages.stage import RunContext, Stage
from flows.preflight.dataset import (
    camera_problems,
    correction_notices,
    correction_problems,
    evaluation_notices,
    evaluation_problems,
    identity_problems,
    label_problems,
    sentence_problems,
    split_problems,
    validation_problems,
)
from flows.preflight.devices import (
    device_problems,
    emulation_notices,
    limit_problems,
    precision_problems,
    worker_notices,
)
from flows.preflight.disk import disk_problems
from flows.preflight.finding import Area, Finding, in_order, texts_of
from flows.preflight.memory import memory_notices, memory_problems
from flows.preflight.plan import Check, IndexRows, Plan
from flows.preflight.server import server_notices, server_problems
from flows.preflight.settings import key_problems, log_problems, prompt_length_problems, runner_problems
from flows.preflight.weights import backbone_problems, captioner_problems, photograph_notices
from flows.recipes import Recipe
from reid.evaluation.stage import EvaluateStage
from reid.training.stage import TrainStage

Needs = Literal["nothing", "rows", "index"]


class Rule(NamedTuple):
    """A check, the area of its findings, and what it needs to know about the images.

    needs: rows are known from the index, or from a listing of a folder that cannot be indexed.
    """

    area: Area
    check: Check
    needs: Needs = "nothing"

    def applies(self, plan: Plan) -> bool:
        """Return True if the images that the check needs are known."""
        return {"nothing": True, "rows": plan.has_rows, "index": plan.is_indexed}[self.needs]

    def findings(self, plan: Plan) -> Iterator[Finding]:
        """Yield what the check finds; nothing if it does not apply."""
        if self.applies(plan):
            yield from (Finding(self.area, text) for text in self.check(plan))


RULES: Final[tuple[Rule, ...]] = (
    Rule("settings", runner_problems),
    Rule("settings", key_problems),
    Rule("settings", prompt_length_problems),
    Rule("settings", log_problems),
    Rule("data", label_problems),
    Rule("data", split_problems, "rows"),
    Rule("data", evaluation_problems, "index"),
    Rule("data", correction_problems, "index"),
    Rule("data", sentence_problems, "index"),
    Rule("sampler", identity_problems, "rows"),
    Rule("sampler", validation_problems, "rows"),
    Rule("sampler", camera_problems, "rows"),
    Rule("weights", captioner_problems),
    Rule("weights", backbone_problems),
    Rule("server", server_problems),
    Rule("device", device_problems),
    Rule("device", precision_problems),
    Rule("device", memory_problems),
    Rule("disk", disk_problems),
)
NOTICES: Final[tuple[Rule, ...]] = (
    Rule("data", evaluation_notices, "index"),
    Rule("data", correction_notices, "index"),
    Rule("weights", photograph_notices),
    Rule("server", server_notices),
    Rule("device", worker_notices),
    Rule("device", emulation_notices),
    Rule("device", memory_notices),
)
_FREE: Final = (label_problems, device_problems, precision_problems)
EARLY: Final[tuple[Rule, ...]] = tuple(rule for rule in RULES if rule.check in _FREE)
"""The rules that cost nothing, not even the listing of a folder or an answer of a server."""


def problems_of(plan: Plan, rules: Iterable[Rule] = RULES) -> list[Finding]:
    """Return everything that is wrong with `plan`, each problem once."""
    return in_order(found for rule in rules for found in rule.findings(plan))


def notices_of(plan: Plan) -> list[Finding]:
    """Return what a person should know before `plan` runs."""
    return problems_of(plan, NOTICES)


def check_run(run: RunContext, recipe: Recipe, until: StageName) -> list[str]:
    """Return notices about the stages of `recipe` after its index, up to `until`; raise ConfigError for all problems.

    Stages that have an artifact are not checked, so a run that finds all of them needs neither a GPU nor space.
    """
    plan = plan_of(run, recipe, missing(run, recipe, planned(recipe, until)))
    limits = [Finding("device", text) for text in limit_problems(plan)]
    raise_problems(f"recipe {recipe.name}", texts_of([*problems_of(plan), *limits]), ConfigError)
    return texts_of(notices_of(plan))


def early_problems(store: ArtifactStore, recipe: Recipe, until: StageName) -> list[Finding]:
    """Return devices and labels that do not exist, of the stages of which no artifact exists at all.

    Needs no index, so that it can run before it.
    """
    stages = (name for name in planned(recipe, until) if not (store.root / "stages" / name).exists())
    return problems_of(plan_of(RunContext(store=store), recipe, stages), EARLY)


def plan_of(run: RunContext, recipe: Recipe, stages: Iterable[StageName], *, listed: IndexRows | None = None) -> Plan:
    """Return the plan of `stages` of `recipe`. listed: see `Plan`."""
    return Plan(
        run=run,
        caption=recipe.caption,
        train=recipe.train,
        evaluate=recipe.evaluate,
        scale=recipe.scale,
        data=recipe.data,
        stages=frozenset(stages),
        listed=listed,
    )


def planned(recipe: Recipe, until: StageName) -> tuple[StageName, ...]:
    """Return the stages after the index that a run of `recipe` up to `until` consists of, in order."""
    searches = recipe.evaluate.text_to_image == "captions" and until in ("evaluate", "report")
    reads_captions = recipe.train.needs_captions or searches or until in ("caption", "audit")
    wanted = STAGES[1:] if reads_captions else STAGES[3:]
    return tuple(name for name in wanted if STAGES.index(name) <= STAGES.index(until))


def missing(run: RunContext, recipe: Recipe, stages: tuple[StageName, ...]) -> Iterator[StageName]:
    """Yield those of `stages` without an artifact; a stage that depends on a missing one counts as missing."""
    captions = model = None
    if "caption" in stages:
        captions = _found(CaptionStage(config=recipe.caption), run)
        if captions is None:
            yield "caption"
    if "train" in stages and (captions is not None or not recipe.train.needs_captions):
        model = _found_model(run, recipe, captions)
    if "train" in stages and model is None:
        yield "train"
    if "evaluate" in stages and (model is None or not _is_evaluated(run, recipe, model, reads="caption" in stages)):
        yield "evaluate"


def _is_evaluated(run: RunContext, recipe: Recipe, model: ArtifactRef, *, reads: bool) -> bool:
    """Return True if `model` is evaluated. reads: the run has captions, which are sentences for the evaluation."""
    captions = _found_captions(run, recipe) if reads else None
    if reads and captions is None:
        return False
    return _found(EvaluateStage(model=model, config=recipe.evaluate, captions=captions), run) is not None


def _found_captions(run: RunContext, recipe: Recipe) -> ArtifactRef | None:
    """Return the captions that the evaluation reads, with corrections if they are in use; None if they do not exist."""
    try:
        return find_captions(run, recipe.caption)
    except ClipScgiError:
        return None  # unreadable corrections: their own check reports them


def _found_model(run: RunContext, recipe: Recipe, captions: ArtifactRef | None) -> ArtifactRef | None:
    """Return the model of `recipe` for the captions of the caption stage, with corrections if they are in use."""
    stage = TrainStage(captions=captions, config=recipe.train)
    if captions is None or not recipe.train.needs_captions or recipe.caption.corrections == "ignore":
        return _found(stage, run)
    correct = CorrectStage(captions=captions, config=recipe.caption)
    corrected = _found(correct, run)
    if corrected is not None:
        return _found(TrainStage(captions=corrected, config=recipe.train), run)
    try:
        # Captions with new corrections are written by the run, but their content already names the model.
        ingredients = {**stage.ingredients(run), "captions": correct.contents(run)["train"]}
    except ClipScgiError:
        return None
    return run.store.find(stage.name, fingerprint_of(stage.name, ingredients))


def _found(stage: Stage, run: RunContext) -> ArtifactRef | None:
    try:
        return stage.find(run)
    except ClipScgiError:
        return None  # weights that do not exist: their own check reports them
