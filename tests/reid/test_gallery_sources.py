"""Entries from indexed images, and notes from a file of captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import ConfigError
from data.schemas import CAPTIONS
from reid.embedding.images import ImageFile
from reid.gallery.entry import Entry
from reid.gallery.sources import Note, entries_of_images, read_features, read_notes, with_notes


def test_people_have_labels_and_junk_and_distractors_have_none():
    images = [
        ImageFile("a.jpg", "0", "query", 7, 1, None),
        ImageFile("b.jpg", "1", "gallery", 3, None, "Ann"),
        ImageFile("c.jpg", "2", "gallery", 0, 2, None),
        ImageFile("d.jpg", "3", "gallery", -1, 2, None),
        ImageFile("e.jpg", "4"),
        ImageFile("f.jpg", "5", "gallery", 3, -1, "Ann"),
    ]
    entries = entries_of_images(images, Path("/photos"))
    assert [entry.label for entry in entries] == ["7", "Ann", None, None, None, "Ann"]
    assert [entry.camera for entry in entries] == [1, None, 2, 2, None, None]
    assert entries[0].path == "/photos/a.jpg"
    numbered_from_zero = [ImageFile("a.jpg", "0", "query", 0, 1), ImageFile("b.jpg", "1", "gallery", 0, 1)]
    assert [entry.label for entry in entries_of_images(numbered_from_zero, Path("/"))] == ["0", "0"]


def write(path: Path, rows: list[dict], columns: list[str]) -> Path:
    pd.DataFrame(rows).reindex(columns=columns).to_parquet(path)
    return path


def test_notes_are_captions_with_attributes_and_probabilities(tmp_path):
    rows = [
        {"image_sha256": "0", "caption": "A man.", "attr_gender": "male", "conf_gender": np.log(0.75)},
        {"image_sha256": "1", "caption": "A woman.", "attr_gender": "female", "conf_gender": np.nan},
        {"image_sha256": "2", "caption": None},
        {"image_sha256": "3", "caption": "Blurred.", "conf_gender": np.log(0.5)},
    ]
    notes = read_notes(write(tmp_path / "captions.parquet", rows, CAPTIONS.names))
    assert notes["0"].attributes == {"gender": "male"}
    assert notes["0"].confidences == pytest.approx({"gender": 0.75})
    assert notes["1"] == Note(caption="A woman.", attributes={"gender": "female"})
    assert notes["3"] == Note(caption="Blurred."), "a probability without a value says nothing"
    assert set(notes) == {"0", "1", "3"}
    entries = with_notes([Entry(path="/a", sha256="2"), Entry(path="/b", sha256="1", camera=4)], notes)
    assert entries[0] == Entry(path="/a", sha256="2")
    assert (entries[1].caption, entries[1].camera, entries[1].confidence) == ("A woman.", 4, None)


def test_a_file_with_captions_alone_will_do_and_another_is_refused(tmp_path):
    rows = [{"image_sha256": "0", "caption": "A man."}]
    assert read_notes(write(tmp_path / "few.parquet", rows, ["image_sha256", "caption"]))["0"].attributes == {}
    other = write(tmp_path / "other.parquet", rows, ["caption", "path"])
    with pytest.raises(ConfigError, match=r"does not have the column\(s\) image_sha256; .*Found: caption, path"):
        read_notes(other)
    with pytest.raises(ConfigError, match="cannot be read as captions"):
        read_notes(tmp_path / "missing.parquet")
    assert read_features(other) is None
    assert read_features(tmp_path / "missing.parquet") is None
