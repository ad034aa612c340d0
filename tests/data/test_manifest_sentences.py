"""The column sentences of a manifest: its forms, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.datasets import DatasetConfig, scan_dataset
from data.errors import DataError
from tests.helpers.data_trees import put


@pytest.fixture
def root(tmp_path):
    put(tmp_path, *(f"{number}.jpg" for number in range(5)))
    return tmp_path


def scan(root):
    return scan_dataset(DatasetConfig(reader="manifest", root=str(root)))


def said(scanned):
    return {record.path: record.sentences for record in scanned.records}


def write_csv(root, *cells):
    lines = [f"{number}.jpg,train,{number},{cell}" for number, cell in enumerate(cells)]
    (root / "manifest.csv").write_text("\n".join(["path,split,pid, Sentences", *lines]) + "\n")


def write_parquet(root, cells, kind):
    names = [f"{number}.jpg" for number in range(len(cells))]
    columns = {"path": names, "split": ["train"] * len(cells), "pid": list(range(len(cells)))}
    pq.write_table(pa.table({**columns, "sentences": pa.array(cells, kind)}), root / "manifest.parquet")


def test_a_cell_is_one_sentence_a_json_list_or_empty(root):
    write_csv(root, "A man.", '"[""A man."", ""He wears  a hat.""]"', "", "[sic] a woman", "NA")
    found = scan(root)
    assert said(found) == {
        "0.jpg": ("A man.",),
        "1.jpg": ("A man.", "He wears a hat."),
        "2.jpg": (),
        "3.jpg": ("[sic] a woman",),
        "4.jpg": (),
    }
    assert (found.rejected, found.notices) == ([], [])


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_lists_in_parquet(root, kind):
    write_parquet(root, [["A man.", "A hat."], None, [], ["", "A woman."]], kind)
    found = scan(root)
    assert said(found) == {"0.jpg": ("A man.", "A hat."), "1.jpg": (), "2.jpg": (), "3.jpg": ("A woman.",)}
    assert found.notices == ["1 empty sentence left out"]


def test_text_in_parquet(root):
    write_parquet(root, ["A man.", None], pa.string())
    assert said(scan(root)) == {"0.jpg": ("A man.",), "1.jpg": ()}


def test_unusable_sentences_reject_their_row(root):
    write_csv(root, "A man.", '"[""A man."", 5]"', "a\x07b")
    found = scan(root)
    assert said(found) == {"0.jpg": ("A man.",)}
    assert {row.path: (row.reason, row.detail[:7]) for row in found.rejected} == {
        "1.jpg": ("bad_sentences", "row 2: "),
        "2.jpg": ("bad_sentences", "row 3: "),
    }


def test_a_column_of_another_type_is_refused_by_name(root):
    write_parquet(root, [{"a": 1}], pa.struct([("a", pa.int64())]))
    with pytest.raises(DataError, match=r"column sentences has the type struct.* write it as text or as lists of text"):
        scan(root)


def test_a_second_row_with_other_sentences_is_rejected_with_the_remedy(root):
    rows = ["path,split,pid,sentences", "0.jpg,train,1,A man.", "0.jpg,train,1,A hat.", "0.jpg,train,1,A man."]
    (root / "manifest.csv").write_text("\n".join(rows))
    found = scan(root)
    assert said(found) == {"0.jpg": ("A man.",)}
    assert sorted(row.detail for row in found.rejected) == [
        "row 2: an earlier row has other sentences; write all sentences of an image into one row, as a list",
        "row 3: an earlier row is identical",
    ]
