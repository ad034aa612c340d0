"""The ``breakdown`` stage: the scores of an evaluation per pair of cameras and per attribute, with 95 % intervals.

Writes camera_pairs.parquet and attributes.parquet. Both are empty where galleries are drawn, since rankings.parquet
then covers the first one only. Camera pairs need known cameras, attributes the audit of the captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, Produced
from data.files import write_table
from data.schemas import SCHEMA_VERSION
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.evaluate import JOINT
from reid.evaluation.features import Encoded, load_features
from reid.evaluation.intervals import CONFIDENCE, RESAMPLES, SEED, each_interval
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import EvaluationRows, evaluation_rows

STAGE_VERSION: Final = 1
CAMERA_PAIRS_FILE: Final = "camera_pairs.parquet"
ATTRIBUTES_FILE: Final = "attributes.parquet"
IDENTITIES_FILE: Final = "identities.parquet"
"""The file of an audit artifact with the majority value of each identity and slot."""
_METADATA: Final = {b"clip_scgi_schema": str(SCHEMA_VERSION).encode()}
_RANKS: Final = (1, 5, 10)

_SCORES: Final = [
    *((name, pa.float64()) for name in ("mAP", "mINP", *(f"rank{rank}" for rank in _RANKS))),  # fractions
    # Ends of the intervals, fractions; null for few queries (`reid.evaluation.intervals.MIN_QUERIES`).
    *((f"{name}_{end}", pa.float64()) for name in ("mAP", "rank1") for end in ("low", "high")),
]
_HEAD: Final = [("model", pa.string()), ("mode", pa.string())]

CAMERA_PAIRS: Final = pa.schema(
    [
        *_HEAD,
        ("query_camid", pa.int64()),
        ("gallery_camid", pa.int64()),
        ("n_queries", pa.int64()),  # of the camera, with a match in the other one
        ("n_gallery", pa.int64()),  # gallery images of the camera, distractors included
        *_SCORES,
    ],
    metadata=_METADATA,
)
"""camera_pairs.parquet: one row per model, mode and pair of cameras with at least one query that has a match."""

ATTRIBUTES: Final = pa.schema(
    [
        *_HEAD,
        ("slot", pa.string()),
        ("value", pa.string()),  # of the majority of the captions; null if no caption of the identity names one
        ("n_queries", pa.int64()),
        ("n_identities", pa.int64()),
        *_SCORES,
    ],
    metadata=_METADATA,
)
"""attributes.parquet: one row per model, mode, slot and value of the identity of a query."""


@dataclass(frozen=True, kw_only=True)
class BreakdownStage(Stage):
    """Break the scores of an evaluation down. audit: the audit of the captions of these images, None without one.

    `make` makes the features and the evaluation first if they do not exist, and raises their errors.
    """

    name: ClassVar[str] = "breakdown"
    evaluation: EvaluateStage
    audit: ArtifactRef | None = None

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return those of the evaluation, the attributes of the identities, and the rules of the intervals."""
        return {
            "evaluation": self.evaluation.ingredients(run),
            "attributes": None if self.audit is None else self.audit.digests_of(IDENTITIES_FILE),
            "intervals": [CONFIDENCE, RESAMPLES, SEED],
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write both tables."""
        rows = evaluation_rows(run.images, self.evaluation.config)
        features = self.evaluation.features.make(run).ref
        rankings = self.evaluation.make(run).ref.folder / "rankings.parquet"
        pairs: list[dict[str, Any]] = []
        if rows.cameras and not rows.drawn:
            for encoded in load_features(features):
                if encoded.mode != JOINT:
                    pairs += _camera_pairs(encoded, rows, self.evaluation)
        by_value = [] if self.audit is None or rows.drawn else list(_attributes(rankings, self.audit))
        write_table(folder / CAMERA_PAIRS_FILE, pa.Table.from_pylist(pairs, CAMERA_PAIRS), CAMERA_PAIRS)
        write_table(folder / ATTRIBUTES_FILE, pa.Table.from_pylist(by_value, ATTRIBUTES), ATTRIBUTES)
        return Produced()


class _Queries(NamedTuple):
    """Scores of V queries: [V] each."""

    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_hit: NDArray[np.int64]

    def take(self, mask: NDArray[np.bool_]) -> _Queries:
        return _Queries(self.ap[mask], self.inp[mask], self.first_hit[mask])

    def means(self) -> dict[str, float]:
        """Return the columns `_SCORES`."""
        values = {"mAP": self.ap, "mINP": self.inp}
        values |= {f"rank{rank}": (self.first_hit <= rank).astype(float) for rank in _RANKS}
        shown = {name: values[name] for name in ("mAP", "rank1")}
        found = each_interval([shown])[0] or {}
        ends = {
            f"{name}_{end}": interval[side] / 100
            for name, interval in found.items()
            for side, end in enumerate(("low", "high"))
        }
        return {name: float(column.mean()) for name, column in values.items()} | ends


def _camera_pairs(encoded: Encoded, rows: EvaluationRows, evaluation: EvaluateStage) -> Iterator[dict[str, Any]]:
    """Yield the rows of camera_pairs.parquet of one model and mode."""
    from reid.ranking.metrics import evaluate_by_camera

    split, images, features = rows.splits[0], rows.images, encoded.features_ND
    query, gallery = images.take(split.query), images.take(split.gallery)
    results = evaluate_by_camera(
        features[split.query],
        features[split.gallery],
        query.pid,
        gallery.pid,
        query.camid,
        gallery.camid,
        exclude=split.exclude,
        rerank=evaluation.config.rerank,
    )
    for camera in np.unique(query.camid):
        for result in results:
            own = query.camid[result.query_index] == camera
            if own.any():
                scored = _Queries(result.ap, result.inp, result.first_hit).take(own)
                yield {
                    "model": encoded.model,
                    "mode": encoded.mode,
                    "query_camid": int(camera),
                    "gallery_camid": result.camera,
                    "n_queries": int(own.sum()),
                    "n_gallery": result.n_gallery,
                    **scored.means(),
                }


def _attributes(rankings: Path, audit: ArtifactRef) -> Iterator[dict[str, Any]]:
    """Yield the rows of attributes.parquet."""
    table = pq.read_table(rankings, columns=["model", "mode", "query_pid", "ap", "inp", "first_hit"]).to_pandas()
    majority = _majority(audit)
    for (model, mode), part in table.groupby(["model", "mode"], sort=False):
        pids = part["query_pid"].to_numpy()
        scored = _Queries(*(part[name].to_numpy() for name in _Queries._fields))
        for slot, value_of in majority.items():
            people, codes = np.unique(pids, return_inverse=True)
            of_people = [value_of.get(pid) for pid in people.tolist()]
            for value in sorted(set(of_people), key=lambda value: (value is None, value)):
                own = np.array([one == value for one in of_people])[codes]
                yield {
                    "model": model,
                    "mode": mode,
                    "slot": slot,
                    "value": value,
                    "n_queries": int(own.sum()),
                    "n_identities": len(np.unique(pids[own])),
                    **scored.take(own).means(),
                }


def _majority(audit: ArtifactRef) -> dict[str, Mapping[int, str]]:
    """Return slot -> identity -> the value that most of its captions name; identities without one are left out."""
    table = pq.read_table(audit.folder / IDENTITIES_FILE, columns=["pid", "slot", "majority"])
    found: dict[str, dict[int, str]] = {}
    for pid, slot, value in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        named = found.setdefault(slot, {})
        if value is not None:
            named[pid] = value
    return {slot: named for slot, named in found.items() if named}
