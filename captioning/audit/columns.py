"""The columns of captions.parquet that the audit compares, as numbers: read batch by batch, about 150 bytes per row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.audit.words import degrading_words, normalized
from captioning.config import AuditConfig
from captioning.prompts.replies import is_looping, is_off_template
from data.artifacts.fingerprint import digest_bytes
from data.columns.codes import Code, Codes
from data.columns.distinct import one_array
from data.columns.source import RowSource
from data.people import is_person
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import SPLITS

ATTRIBUTES: Final = tuple(f"attr_{slot}" for slot in SLOTS)
CONFIDENCES: Final = tuple(f"conf_{slot}" for slot in SLOTS)
_READ: Final = ("split", "pid", "raw_text", "status", "template_id", "truncated", *ATTRIBUTES, *CONFIDENCES)
_KEY_BYTES: Final = 16

Mask = NDArray[np.bool_]
Int64s = NDArray[np.int64]


class Captions(NamedTuple):
    """All captions of a dataset, [N].

    splits: index into `data.splits.SPLITS`. is_person: shows a known person. answers: code of each slot's value, in the
    order of the texts of `values`, -1 for none, [N, slots]. texts: number of the normalized text, -1 without text.
    flags: flag -> its mask, for the flags that depend on one caption alone. statuses: status -> number of captions.
    labels: code of the label of the identity, and the labels; None if the dataset has none.
    """

    pids: Int64s
    splits: NDArray[np.int8]
    is_person: Mask
    answers: Code
    values: list[list[str]]
    texts: Int64s
    flags: dict[str, Mask]
    statuses: dict[str, int]
    labels: tuple[Code, list[str]] | None


def read_captions(source: RowSource, config: AuditConfig) -> Captions:
    """Read the captions, each distinct text of a batch once."""
    reader = _Reader(config)
    labeled = [LABEL.name] if LABEL.name in source.names else []
    for rows in source.batches(*_READ, *labeled):
        reader.add(rows)
    return reader.captions(has_label=bool(labeled))


class _Reader:
    """Collects the columns of `Captions`."""

    def __init__(self, config: AuditConfig) -> None:
        self._config = config
        self._codes = [Codes() for _ in SLOTS]
        self._label = Codes()
        self._statuses: Counter[str] = Counter()
        self._parts: list[dict[str, NDArray[Any]]] = []

    def add(self, rows: pa.Table) -> None:
        """Take the columns of a batch."""
        answers = [codes.encode(one_array(rows[name])) for codes, name in zip(self._codes, ATTRIBUTES, strict=True)]
        part = {
            "pids": rows["pid"].to_numpy(),
            "splits": pc.index_in(one_array(rows["split"]), pa.array(SPLITS)).to_numpy().astype(np.int8),
            "answers": np.stack(answers, axis=1),
            **self._texts(rows),
            **self._marks(rows),
        }
        if LABEL.name in rows.column_names:
            part["labels"] = self._label.encode(one_array(rows[LABEL.name]))
        self._statuses.update(
            {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["status"]).to_pylist()}
        )
        self._parts.append(part)

    def _texts(self, rows: pa.Table) -> dict[str, NDArray[Any]]:
        """Return what follows from the text of each row: its key, and flags."""
        config = self._config
        encoded = one_array(rows["raw_text"].fill_null("")).dictionary_encode()
        texts, at = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        keys = b"".join(bytes.fromhex(digest_bytes(normalized(text).encode())[: 2 * _KEY_BYTES]) for text in texts)
        written = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)[at]
        return {
            "keys": np.frombuffer(keys, dtype=f"S{_KEY_BYTES}")[at],
            "written": written,
            "looping": _each(texts, lambda text: is_looping(text, config.loop_repeats))[at],
            "degrading": _each(texts, degrading_words)[at],
            "off_template": written & self._off_template(texts, at, rows),
        }

    def _off_template(self, texts: list[str], at: Int64s, rows: pa.Table) -> Mask:
        found = np.zeros(len(at), dtype=np.bool_)
        for template in pc.unique(rows["template_id"]).to_pylist():
            of_template = pc.equal(rows["template_id"], template).fill_null(template is None).to_numpy()
            found |= _each(texts, partial(is_off_template, template_id=template, form=self._config))[at] & of_template
        return found

    def _marks(self, rows: pa.Table) -> dict[str, NDArray[Any]]:
        """Return what follows from the other columns of a row."""
        status = rows["status"]
        limit = math.log(self._config.low_confidence)
        unsure = [pc.less(rows[name].cast(pa.float64()), limit).fill_null(False).to_numpy() for name in CONFIDENCES]
        return {
            "wrong": pc.equal(status, "wrong").to_numpy(),
            "no_slot": np.logical_and.reduce([rows[name].is_null().to_numpy() for name in ATTRIBUTES]),
            "unparsed": pc.equal(status, "unparsed").to_numpy(),
            "truncated": pc.or_(rows["truncated"].fill_null(False), pc.equal(status, "truncated")).to_numpy(),
            "low_confidence": np.logical_or.reduce(unsure),
        }

    def captions(self, *, has_label: bool) -> Captions:
        """Return the columns of all batches."""
        empty = self._empty(has_label=has_label)
        # Column by column, so that no more than one of them is in memory twice.
        found = {name: np.concatenate([empty[name], *(part.pop(name) for part in self._parts)]) for name in empty}
        self._parts = []
        splits, pids = found["splits"], found["pids"]
        is_known = is_person(np.array(SPLITS, dtype=object)[splits], pids)
        written = found["written"]
        flags = {
            "failed": ~written & ~found["wrong"],  # marked by a person, who needs no flag
            "unparsed": found["unparsed"] | (written & found["no_slot"]),
            **{name: found[name] for name in ("truncated", "looping", "off_template", "degrading", "low_confidence")},
        }
        return Captions(
            pids=pids,
            splits=splits,
            is_person=is_known,
            answers=self._sorted(found["answers"]),
            values=[sorted(codes.values) for codes in self._codes],
            texts=np.where(written, np.unique(found.pop("keys"), return_inverse=True)[1], -1),
            flags=flags,
            statuses=dict(sorted(self._statuses.items())),
            labels=(found["labels"], self._label.values) if has_label else None,
        )

    def _sorted(self, answers: Code) -> Code:
        """Return the answers with codes in the order of their texts."""
        for slot, codes in enumerate(self._codes):
            ranks = np.append(codes.ranks(), -1).astype(np.int32)  # the code -1 stays
            answers[:, slot] = ranks[answers[:, slot]]
        return answers

    @staticmethod
    def _empty(*, has_label: bool) -> dict[str, NDArray[Any]]:
        masks = ("written", "looping", "degrading", "off_template", "wrong", "no_slot", "unparsed", "truncated")
        return {
            "pids": np.empty(0, dtype=np.int64),
            "splits": np.empty(0, dtype=np.int8),
            "answers": np.empty((0, len(SLOTS)), dtype=np.int32),
            "keys": np.empty(0, dtype=f"S{_KEY_BYTES}"),
            **{name: np.empty(0, dtype=np.bool_) for name in (*masks, "low_confidence")},
            **({"labels": np.empty(0, dtype=np.int32)} if has_label else {}),
        }


def _each(texts: list[str], test: Callable[[str], object]) -> Mask:
    return np.array([bool(test(text)) for text in texts], dtype=np.bool_)
