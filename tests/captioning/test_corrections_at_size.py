"""Corrections of many images: histories against a plain model, lazy reading, imports that are killed or interleaved."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.corrections import Corrections, Edit, ModelCaption, store
from captioning.corrections.exchange import plan_import, save_import
from captioning.corrections.images import DatasetImages
from captioning.corrections.record import Correction
from captioning.corrections.store import Change
from captioning.corrections.table import FileRow
from data.artifacts.fingerprint import digest, digest_each
from data.columns.digests import digests_of
from data.columns.texts import Texts
from data.errors import DataError
from data.stages.images import ImageDigests
from tests.helpers.fresh_processes import FORK_SERVER, join_all

TIME = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
MODEL = ModelCaption("A man is wearing a red coat.", "f" * 32)
NAMES = [f"{number:02x}" * 32 for number in (0, 1, 16, 171, 255)]
EDITS = [Edit.of_text("A man."), Edit.of_text("A woman."), Edit.of_slots({"hair": "bald"}), Edit.wrong(), Edit.reset()]


def change(image: str, edit: Edit, seen: int) -> Change:
    return Change(sha256=image, edit=edit, author="ada", expected_revision=seen, against=MODEL, time=TIME)


CHANGES = st.lists(st.builds(change, st.sampled_from(NAMES), st.sampled_from(EDITS), st.integers(0, 3)), max_size=6)


class Model:
    """What the store must say: all entries per image, and the last applied one."""

    def __init__(self) -> None:
        self.entries: defaultdict[str, list[Correction]] = defaultdict(list)

    def add(self, saved: list[Correction]) -> None:
        for entry in saved:
            known = self.entries[entry.sha256]
            now = next((old.revision for old in reversed(known) if old.applied), 0)
            assert (entry.revision, entry.applied) == (len(known) + 1, now == entry.seen)
            known.append(entry)

    def current(self) -> dict[str, Correction]:
        applied = {image: [one for one in entries if one.applied] for image, entries in self.entries.items()}
        return {image: entries[-1] for image, entries in applied.items() if entries}


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, max_size=6))
def test_any_history_is_read_as_it_was_written(batches):
    """Two stores share a file; one reads after every batch, a third one all lines at the end."""
    with TemporaryDirectory() as home:
        writer, reader, model = Corrections.open(Path(home)), Corrections.open(Path(home)), Model()
        moments = []
        for batch in batches:
            model.add(writer.save_all(batch))
            moments.append((reader.current(), model.current()))
        for store in (reader, Corrections.open(Path(home))):
            found = store.current()
            assert found == model.current()
            assert [*found] == sorted(model.current())
            assert [*found.entries()] == [found[image] for image in found]
            assert [*store.everything()] == [one for entries in model.entries.values() for one in entries]
            assert {image: store.history(image) for image in NAMES} == {
                image: tuple(model.entries[image]) for image in NAMES
            }
            kinds = [one.kind for one in model.current().values()]
            assert found.count_kinds() == {kind: kinds.count(kind) for kind in kinds}
            assert set(found.without_resets()) == {image for image in found if found[image].kind != "reset"}
            assert set(found.with_text()) == {image for image in found if found[image].text is not None}
            some = digests_of(pa.array([NAMES[4], NAMES[0], NAMES[4]]))
            assert set(found.among([some])) == {image for image in found if image in (NAMES[0], NAMES[4])}
        for at_that_time, expected in moments:
            assert at_that_time == expected


def test_the_digest_of_values_one_by_one_is_that_of_their_list():
    for values in ([], [["a", None]], [{"b": 1}, "ü", 2]):
        assert digest_each(iter(values)) == digest(values)


def test_what_was_current_is_still_read_after_the_file_was_replaced(tmp_path):
    kept, other = Corrections.open(tmp_path / "one"), Corrections.open(tmp_path / "two")
    kept.save_all([change(NAMES[0], EDITS[0], 0)])
    before = kept.current()
    other.save_all([change(NAMES[0], EDITS[1], 0), change(NAMES[1], EDITS[1], 0)])
    other.file.replace(kept.file)
    assert before[NAMES[0]].text == "A man."
    assert {image: entry.text for image, entry in kept.current().items()} == dict.fromkeys(NAMES[:2], "A woman.")
    assert before.version() != kept.current().version()
    kept.file.unlink()
    assert kept.current() == {}


def test_a_line_that_was_overwritten_is_not_read_as_another_one(tmp_path):
    kept = Corrections.open(tmp_path)
    kept.save_all([change(NAMES[0], EDITS[0], 0), change(NAMES[1], EDITS[0], 0)])
    found = kept.current()
    lines = kept.file.read_text().splitlines()
    kept.file.write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(DataError, match="line 1 was changed while it was in use"):
        found[NAMES[0]]


@pytest.mark.parametrize("number", [0, 2])
def test_the_number_of_a_damaged_line_counts_those_that_were_read_before(tmp_path, number):
    kept = Corrections.open(tmp_path)
    kept.save_all([change(NAMES[0], EDITS[0], 0), change(NAMES[1], EDITS[0], 0)])
    if number:
        assert len(kept.current()) == 2
    lines = kept.file.read_text().splitlines()
    lines.insert(number, lines[0].replace(NAMES[0], "no digest"))
    kept.file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"line {number + 1} is damaged \(image 'no digest' is not a sha256\)"):
        Corrections.open(tmp_path).current()


# Imports


def images(count: int) -> DatasetImages:
    digests = np.arange(count * 4, dtype=np.uint64).view("S32")
    return DatasetImages(paths=ImageDigests(Texts(f"{number}.jpg" for number in range(count)), digests), root="/x")


def rows(count: int, text: str = "A man") -> Iterator[FileRow]:
    for number in range(count):
        yield FileRow(number + 1, {"image_path": f"{number}.jpg", "caption": f"{text} {number}."})


def import_rows(home: str, count: int) -> int:
    kept = Corrections.open(Path(home))
    return save_import(plan_import("f", rows(count), kept, images(count), author="tool"), kept)


def killed_import(home: str, count: int, at: int) -> None:
    """Import in small blocks, and kill this process in the middle of block `at`."""
    kept, real, blocks = Corrections.open(Path(home)), os.write, itertools.count()
    plan = plan_import("f", rows(count), kept, images(count), author="tool")
    plan.waiting.block_bytes = 4096

    def write(handle: int, content: bytes) -> int:
        if next(blocks) < at:
            return real(handle, content)
        real(handle, content[:1234])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("this process is dead")

    os.write = write
    save_import(plan, kept)


@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_killed_import_leaves_whole_lines_and_is_finished_by_another(tmp_path, at):
    count = 200
    process = FORK_SERVER.Process(target=killed_import, args=(str(tmp_path), count, at))
    process.start()
    join_all([process])
    assert process.exitcode == -signal.SIGKILL
    kept = Corrections.open(tmp_path)
    assert kept.file.stat().st_size == 4096 * at + 1234
    found = len(kept.current())
    assert found == kept.file.read_bytes().count(b"\n")
    assert import_rows(str(tmp_path), count) == count - found
    assert [entry.text for entry in kept.everything()] == [f"A man {number}." for number in range(count)]
    assert len(kept.file.read_bytes().splitlines()) == count


def test_a_killed_append_is_finished_by_another_import(tmp_path):
    """Every place at which an append can end."""
    assert import_rows(str(tmp_path / "whole"), 3) == 3
    whole = Corrections.open(tmp_path / "whole").file.read_bytes()
    for end in range(0, len(whole), 31):
        kept = Corrections.open(tmp_path / f"{end}")
        kept.file.parent.mkdir(parents=True)
        kept.file.write_bytes(whole[:end])
        assert import_rows(str(tmp_path / f"{end}"), 3) == 3 - whole[:end].count(b"\n")
        lines = [json.loads(line) for line in kept.file.read_bytes().splitlines()]
        expected = [json.loads(line) for line in whole.splitlines()]
        assert [line | {"time": ""} for line in lines] == [line | {"time": ""} for line in expected]


def test_edits_between_plan_and_import_move_only_their_own_lines(tmp_path):
    """Edits of two of four images: one of an image that had none, one of an image that had one."""
    kept, known = Corrections.open(tmp_path), images(4)
    import_rows(str(tmp_path), 2)
    plan = plan_import("f", rows(4, "A woman"), kept, known, author="tool", force=True)
    assert plan.counts == {"changed": 2, "new": 2}
    one, two = (known.paths[f"{number}.jpg"] for number in (1, 2))
    kept.save(one, Edit.of_text("By a person."), author="ada", expected_revision=1)
    kept.save(two, Edit.of_text("By a person."), author="ada", expected_revision=0)
    with pytest.raises(Exception, match="2 of 4 captions were edited by others meanwhile"):
        save_import(plan, kept)
    texts = [entry.text for entry in kept.current().values()]
    assert sorted(texts) == ["A woman 0.", "A woman 3.", "By a person.", "By a person."]
    found = [(entry.revision, entry.seen, entry.applied) for entry in kept.history(one)]
    assert found == [(1, 0, True), (2, 1, True), (3, 1, False)]
    assert [(entry.revision, entry.applied) for entry in kept.history(two)] == [(1, True), (2, False)]


def test_a_history_that_is_replaced_between_plan_and_import_counts_as_edited(tmp_path):
    kept, known = Corrections.open(tmp_path / "home"), images(2)
    other = Corrections.open(tmp_path / "other")
    import_rows(str(tmp_path / "other"), 1)
    plan = plan_import("f", rows(2, "A woman"), kept, known, author="tool")
    kept.file.parent.mkdir(parents=True)
    other.file.replace(kept.file)
    with pytest.raises(Exception, match="1 of 2 captions were edited by others meanwhile"):
        save_import(plan, kept)
    assert [entry.text for entry in kept.everything()] == ["A man 0.", "A woman 0.", "A woman 1."]


def test_a_full_disk_saves_nothing_of_an_import(tmp_path, monkeypatch):
    import_rows(str(tmp_path), 2)
    kept = Corrections.open(tmp_path)
    before = kept.file.read_bytes()
    plan = plan_import("f", rows(2, "A woman"), kept, images(2), author="tool", force=True)
    plan.waiting.block_bytes = 100
    written = []

    def write(handle: int, content: bytes) -> int:
        written.append(content)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return real(handle, content)

    real = store.os.write
    monkeypatch.setattr(store.os, "write", write)
    with pytest.raises(Exception, match="is full: the correction was not saved"):
        save_import(plan, kept)
    assert kept.file.read_bytes() == before
