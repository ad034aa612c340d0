"""The table of images of the pages, with its texts in memory or in their file."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from data.artifacts.contents import CAPTIONS_FILE
from data.artifacts.inventory import take_inventory
from data.artifacts.store import ArtifactStore
from data.errors import DataError
from flows.ui.content.items import ImageFilter
from flows.ui.content.recent import Recent
from flows.ui.content.tables import Tables

pytestmark = pytest.mark.xdist_group("flow")


def test_texts_that_stay_in_their_file_are_those_in_memory(finished):
    store = ArtifactStore(finished[0])
    known = {entry.stage: entry for entry in take_inventory(store).entries}
    held, long = (
        Tables(store, [], few=few).get(known["index"], known["caption"], known["audit"]) for few in (1 << 18, 0)
    )
    assert (held.texts, "caption" in long.table.column_names, long.has_captions) == (None, False, True)
    word = held.item(3).caption.split()[-1].strip(".").upper()
    for wanted in (ImageFilter(), ImageFilter(text=word), ImageFilter(split="query")):
        rows = held.select(wanted)
        assert len(rows) > 0
        assert rows.tolist() == long.select(wanted).tolist()
        assert held.items(rows[::-7]) == long.items(rows[::-7])


def test_texts_whose_file_goes_while_the_page_is_open_are_an_error_that_names_it(finished, tmp_path):
    store = ArtifactStore(finished[0])
    known = {entry.stage: entry for entry in take_inventory(store).entries}
    folder = tmp_path / "captions"
    shutil.copytree(known["caption"].folder, folder)
    long = Tables(store, [], few=0).get(known["index"], replace(known["caption"], folder=folder), None)
    (folder / CAPTIONS_FILE).unlink()
    for use in (lambda: long.select(ImageFilter(text="coat")), lambda: long.item(0)):
        with pytest.raises(DataError, match=r"captions.parquet cannot be read .*; run its stage again"):
            use()


def test_tables_that_are_too_heavy_together_are_dropped_and_the_last_one_stays():
    kept = Recent[list[int]](4, weight=len, heaviest=5)
    made = []

    def get(size):
        return kept.get(size, lambda: made.append(size) or [0] * size)

    for size in (2, 3, 2, 9, 9, 2):
        get(size)
    assert made == [2, 3, 9, 2]
