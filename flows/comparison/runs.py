"""Finished evaluations, found by fingerprint, folder or recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from data.artifacts.fingerprint import digest_file
from data.artifacts.store import SIDECAR, ArtifactStore, read_uses
from data.errors import ConfigError, DataError
from data.files import read_json
from flows.naming import Kind, folder_named
from reid.evaluation.sentences.source import Source

EVALUATE: Final = "evaluate"
METRICS_FILE: Final = "metrics.json"
RANKINGS_FILE: Final = "rankings.parquet"
_EVALUATION: Final = Kind(
    command="compare",
    stages=(EVALUATE,),
    file=METRICS_FILE,
    one="an evaluation",
    many="evaluations",
    done="evaluated",
)


class RowName(NamedTuple):
    """A model (trained or untrained) and an inference mode: one row of metrics.json."""

    model: str
    mode: str

    def __str__(self) -> str:
        """Return the row in words."""
        return f"{self.model}, {self.mode} mode"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished evaluation.

    name: how the user named it. fingerprint: "" if the folder has no artifact.json. recipe: of its last use, or "".
    test_images: digest of the rows of queries and gallery, or "". model: digest of model.safetensors, or "". settings:
    of the evaluation, as in its ingredients. rows: in the order of metrics.json. sentences: whose text to image was
    measured with, "dataset" or "captions", None without. protocol: see `reid.evaluation.protocol.Protocol`.
    """

    name: str
    folder: Path
    fingerprint: str
    recipe: str
    created: datetime | None
    test_images: str
    model: str
    settings: Mapping[str, Any]
    rows: tuple[RowName, ...]
    sentences: Source | None
    protocol: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Short name of the artifact, or its folder if that has no artifact.json."""
        return f"{EVALUATE}/{self.fingerprint[:8]}" if self.fingerprint else str(self.folder)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.protocol.get("dataset", ""))

    @property
    def rankings(self) -> Path:
        """Path of rankings.parquet."""
        return self.folder / RANKINGS_FILE


class RankedRow(NamedTuple):
    """One row of one run: what is compared."""

    run: Run
    row: RowName


def find_run(name: Path | str, store: ArtifactStore) -> Run:
    """Return the evaluation that `name` names.

    Args:
        name: a folder; or a text: the beginning of a fingerprint (with or without ``evaluate/``), a folder, or the name
            of a recipe, which stands for its newest evaluation.
        store: where fingerprints and recipes are looked up.

    Raises:
        ConfigError: no evaluation has that name, or several have.
        DataError: the files of the evaluation are missing, damaged or changed.
    """
    folder = name if isinstance(name, Path) else folder_named(name, store, _EVALUATION)
    run = _read(str(name), folder.expanduser())
    _check_files(run.folder)
    return run


def _read(name: str, folder: Path) -> Run:
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ConfigError(
            f"compare: {folder} does not contain an evaluation ({METRICS_FILE} missing); give the folder of an "
            "evaluate artifact, such as artifacts/stages/evaluate/<fingerprint>"
        )
    try:
        metrics, sidecar = read_json(path), _sidecar(folder)
        created, ingredients = sidecar.get("created"), sidecar.get("ingredients", {})
        return Run(
            name=name,
            folder=folder.absolute(),
            fingerprint=str(sidecar.get("fingerprint") or ""),
            recipe=next((use["recipe"] for use in reversed(read_uses(folder))), ""),
            created=datetime.fromisoformat(created) if created else None,
            test_images=str(ingredients.get("images", "")),
            model=str(ingredients.get("model", {}).get("model.safetensors", "")),
            settings=dict(ingredients.get("config", {})),
            rows=tuple(RowName(str(row["model"]), str(row["mode"])) for row in metrics["results"]),
            sentences=metrics.get("text_to_image", {}).get("source"),
            protocol=dict(metrics["protocol"]),
        )
    except (DataError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"compare: {path} or {SIDECAR} beside it is damaged; evaluate again") from error


def _sidecar(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / SIDECAR)) if (folder / SIDECAR).is_file() else {}


def _check_files(folder: Path) -> None:
    """Raise DataError unless the rankings exist and both files are what artifact.json lists, if that exists."""
    if not (folder / RANKINGS_FILE).is_file():
        raise DataError(
            f"compare: {folder} does not contain {RANKINGS_FILE}, which has the score of each query; evaluate again"
        )
    listed = _sidecar(folder).get("files", {})
    for name in (METRICS_FILE, RANKINGS_FILE):
        if name in listed and listed[name]["sha256"] != digest_file(folder / name):
            raise DataError(f"compare: {folder / name} differs from what {SIDECAR} lists; evaluate again")


def choose_rows(runs: Sequence[Run], models: Sequence[str] = (), modes: Sequence[str] = ()) -> tuple[RankedRow, ...]:
    """Return the row to compare of each run.

    models, modes: nothing, one for all runs, or one per run. By default, the trained model where a run has one, and the
    image mode, or else the first mode that all runs have.

    Raises:
        ConfigError: a run does not have that row, or the numbers of values and runs differ.
    """
    given_models, given_modes = _one_each("--model", models, runs), _one_each("--mode", modes, runs)
    of_run = [given or _default_model(run) for run, given in zip(runs, given_models, strict=True)]
    shared = _shared_mode(runs, of_run)
    rows = []
    for run, model, given in zip(runs, of_run, given_modes, strict=True):
        row = RowName(model, given or shared)
        if row not in run.rows:
            has = "; ".join(map(str, run.rows))
            raise ConfigError(
                f"compare: {run.name} ({run.key}) does not have the row {row}. It has: {has}. "
                "Choose with --model and --mode, once for all runs or once per run"
            )
        rows.append(RankedRow(run, row))
    return tuple(rows)


def _one_each(option: str, values: Sequence[str], runs: Sequence[Run]) -> list[str]:
    if len(values) not in (0, 1, len(runs)):
        raise ConfigError(f"compare: give {option} once, or {len(runs)} times, once per run (given: {len(values)})")
    return list(values or [""]) * (len(runs) if len(values) < 2 else 1)


def _default_model(run: Run) -> str:
    models = [row.model for row in run.rows]
    return "trained" if "trained" in models or not models else models[0]


def _shared_mode(runs: Sequence[Run], models: Sequence[str]) -> str:
    of_run = [[row.mode for row in run.rows if row.model == model] for run, model in zip(runs, models, strict=True)]
    shared = [mode for mode in of_run[0] if all(mode in modes for modes in of_run)]
    return "image" if "image" in shared or not shared else shared[0]
