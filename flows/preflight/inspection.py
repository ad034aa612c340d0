"""All problems of a recipe at once, also if its settings are invalid or its dataset cannot be indexed.

`clip-scgi check` shows the result. A run raises it as soon as its settings, its devices or its index fail, so that one
message names everything that has to be fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactStore
from data.datasets import scan_dataset
from data.errors import ClipScgiError, ConfigError, messages_of, raise_problems
from data.index.stage import index
from data.progress import ProgressFn, silent
from data.stages.stage import RunContext
from flows.preflight.check import NOTICES, RULES, early_problems, missing, notices_of, plan_of, planned, problems_of
from flows.preflight.disk import closed_folders
from flows.preflight.finding import Area, Finding, in_order, texts_of
from flows.preflight.plan import IndexRows, Plan, listed_rows
from flows.preflight.server import silent_server_problems
from flows.recipes import ExaminedRecipe, Recipe
from flows.worlds import dataset_of, ensure_dataset


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known about a run before it starts. stages: those it consists of after the index, cached or not."""

    recipe: Recipe
    stages: tuple[StageName, ...]
    plan: Plan
    problems: Sequence[Finding]
    notices: Sequence[Finding]

    @property
    def unchecked(self) -> frozenset[Area]:
        """Areas with rules that need images which are not known yet."""
        return frozenset(rule.area for rule in (*RULES, *NOTICES) if not rule.applies(self.plan))


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """The images as far as they are known. run: with the indexed images if there are any."""

    run: RunContext
    problems: Sequence[str] = ()
    notices: Sequence[str] = ()
    listed: IndexRows | None = None


def inspect(
    store: ArtifactStore, examined: ExaminedRecipe, until: StageName, progress: ProgressFn = silent
) -> Inspection:
    """Return the problems and notices of a recipe. Draw and index its dataset, as a run would; the run reuses both."""
    return _inspected(examined, until, _indexed(store, examined.recipe, progress))


def check_early(store: ArtifactStore, examined: ExaminedRecipe, until: StageName) -> None:
    """Raise ConfigError before the index for settings and devices that cannot work, with every other problem.

    The dataset is not read, only listed; and not even that if there is no problem.
    """
    if examined.problems or early_problems(store, examined.recipe, until):
        _raise(_inspected(examined, until, _listed(store, examined.recipe)))


def check_after(store: ArtifactStore, recipe: Recipe, until: StageName, error: ClipScgiError) -> None:
    """Raise ConfigError for everything else that would fail, together with the `error` of the index, if there is any.

    With nothing else, return; then the caller raises `error` itself.
    """
    dataset = _listed(store, recipe, error)
    found = _inspected(ExaminedRecipe(recipe), until, dataset)
    if len(found.problems) > len(dataset.problems):
        _raise(found)


def _raise(found: Inspection) -> None:
    raise_problems(f"recipe {found.recipe.name}", texts_of(found.problems), ConfigError)


def _inspected(examined: ExaminedRecipe, until: StageName, dataset: _Dataset) -> Inspection:
    recipe, stages = examined.recipe, planned(examined.recipe, until)
    # Without an index no artifact can be found: every stage counts as missing.
    to_run: Iterable[StageName] = stages if dataset.run.indexed is None else missing(dataset.run, recipe, stages)
    plan = plan_of(dataset.run, recipe, to_run, listed=dataset.listed)
    settings = [Finding("settings", text) for text in examined.problems]
    # A run waits for a server that is restarting, so only a check reports one that does not answer.
    unanswered = [Finding("server", text) for text in silent_server_problems(plan)]
    renamed = [Finding("settings", text) for text in examined.notices]
    return Inspection(
        recipe=recipe,
        stages=stages,
        plan=plan,
        problems=in_order([*settings, *_data(dataset.problems), *problems_of(plan), *unanswered]),
        notices=in_order([*renamed, *_data(dataset.notices), *notices_of(plan)]),
    )


def _data(texts: Iterable[str]) -> list[Finding]:
    return [Finding("data", text) for text in texts]


def _indexed(store: ArtifactStore, recipe: Recipe, progress: ProgressFn) -> _Dataset:
    """Index the dataset; if that fails, list it."""
    if closed_folders(store.root):  # the index could not be written
        return _listed(store, recipe)
    try:
        if dataset_of(store, recipe).root != recipe.data.root:
            progress(0, 0, "drawing synthetic people")
        made = index(store, config=ensure_dataset(store, recipe), progress=progress)
    except ClipScgiError as error:
        return _listed(store, recipe, error)
    return _Dataset(run=RunContext(store=store, indexed=made.images), notices=made.images.description.notices)


def _listed(store: ArtifactStore, recipe: Recipe, error: ClipScgiError | None = None) -> _Dataset:
    """List the dataset without reading any image. error: why it cannot be indexed, if that is known."""
    data, run = dataset_of(store, recipe), RunContext(store=store)
    problems = () if error is None else messages_of(error)
    if data.root != recipe.data.root and not Path(data.root).is_dir():
        return _Dataset(run=run, problems=problems)  # synthetic people that are not drawn yet
    try:
        scan = scan_dataset(data)
    except ClipScgiError as unlisted:
        return _Dataset(run=run, problems=problems or messages_of(unlisted))
    return _Dataset(run=run, problems=problems, listed=listed_rows(scan.records))
