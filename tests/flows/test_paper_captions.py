"""``clip-scgi paper captions``: the choice of people, disagreement, any text, and captions that do not exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioning.audit.contact_sheet import SheetConfig
from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactStore
from data.errors import ConfigError
from data.schemas import CAPTIONS, LABEL
from flows.cli.app import main
from flows.naming import folder_named
from flows.paper.caption_figure import draw, write_figure
from flows.paper.captions import CAPTIONS as KIND
from flows.paper.captions import gallery
from flows.paper.drawing import INK, WRONG
from tests.helpers.page_text import HOSTILE, Page
from tests.helpers.stages import make_artifact

GRAY = (226, 230, 237)
COLORS = {1: ("red", "red", "blue", None), 2: ("red", "green"), 3: ("white", "white")}


def caption(pid, number, color, root, **changes):
    """One row of captions.parquet, with its image."""
    path = f"{pid}_c{number % 2 + 1}_{number}.png"
    Image.new("RGB", (30, 60), (40 * pid, 200, 10)).save(root / path)
    text = f"A man in a {color} shirt." if color else "A man."
    row = {
        "image_path": path,
        "image_sha256": digest_bytes((root / path).read_bytes()),
        "split": "train",
        "pid": pid,
        "camid": number % 2 + 1,
        "caption": text,
        "raw_text": text,
        "status": "ok",
        "model_id": "toy/llava",
        "attr_gender": "male",
        "attr_upper_color": color,
    }
    return row | changes


def write(folder, rows, schema=CAPTIONS):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema)
    pq.write_table(table, folder / "captions.parquet")
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    return folder


@pytest.fixture
def rows(root):
    return [caption(pid, at, color, root) for pid, colors in COLORS.items() for at, color in enumerate(colors)]


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def shown(folder, store, root, **settings):
    return gallery(folder, store, SheetConfig(**settings), root)


# Disagreement -----------------------------------------------------------------------------------------


def test_what_captions_disagree_on_is_counted_over_all_images_of_the_person(rows, root, store, tmp_path):
    found = shown(write(tmp_path / "captions", rows), store, root, each=2)
    first, second, third = found.persons
    assert [person.identity.pid for person in found.persons] == [1, 2, 3]
    assert [(one.slot, one.values) for one in first.conflicts] == [("upper color", [("red", 2), ("blue", 1)])]
    assert [(one.slot, one.values) for one in second.conflicts] == [("upper color", [("green", 1), ("red", 1)])]
    assert third.conflicts == []
    assert (first.n_images, len(first.images)) == (4, 2)
    every = shown(tmp_path / "captions", store, root, each=9).persons[0].images
    marked = {
        image.path: [(one.value, one.captions, one.named, one.minor) for one in image.disputed] for image in every
    }
    assert sorted(marked.values()) == [[], [("blue", 1, 3, True)], [("red", 2, 3, False)], [("red", 2, 3, False)]]
    tied = [one.minor for image in second.images for one in image.disputed]
    assert tied == [False, False], "neither of two equally frequent values is the minor one"
    assert found.source == "8 images, captioned by toy/llava; 0 without a usable caption"


def test_people_with_several_images_are_preferred(rows, root, store, tmp_path):
    alone = [caption(pid, 0, "red", root) for pid in (4, 5)]
    found = shown(write(tmp_path / "captions", [*rows, *alone]), store, root, identities=9)
    assert [person.identity.pid for person in found.persons] == [1, 2, 3]
    only = shown(write(tmp_path / "alone", alone), store, root, identities=9)
    assert [len(person.images) for person in only.persons] == [1, 1]


def test_images_of_unknown_people_disagree_in_nothing(rows, root, store, tmp_path):
    unknown = [row | {"split": "gallery", "pid": 0, "camid": -1} for row in rows]
    found = shown(write(tmp_path / "captions", unknown), store, root, identities=2, each=3)
    (group,) = found.persons
    assert (group.identity, group.n_images, len(group.images)) == (None, 8, 6)
    assert not [one for image in group.images for one in image.disputed]
    assert "The people are unknown" in found.rule
    draw(found)
    write_figure(tmp_path, found)
    page = Page((tmp_path / "captions.html").read_text())
    assert "Unknown people" in page.words
    assert "camera unknown" in page.words


# Any text ---------------------------------------------------------------------------------------------

TEXTS = {
    "cyrillic": "Молодая женщина в красном пальто",
    "arabic": "امرأة شابة ترتدي معطفا أحمر",
    "long": "word " * 1000,
    "unbroken": "x" * 5000,
    "hostile": HOSTILE,
    "control": "a\u202eb\x01c",
}


def test_text_of_any_script_and_length_is_escaped_and_drawn(rows, root, store, tmp_path):
    texts = [row | {"caption": text} for row, text in zip(rows, TEXTS.values(), strict=False)]
    labeled = [row | {"label": f"{HOSTILE} {row['pid']}"} for row in [*texts, *rows[len(texts) :]]]
    folder = write(tmp_path / "captions", labeled, CAPTIONS.append(LABEL))
    found = shown(folder, store, root, each=4)
    written, notices = write_figure(tmp_path / "out", found)
    assert [path.name for path in written] == ["captions.html", "captions.png"]
    assert notices == []
    html = written[0].read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert not [tag for tag, attrs in page.elements if tag in ("script", "link") or "onerror" in attrs]
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    text = "".join(page.text)
    for one in TEXTS.values():
        assert one.strip() in text
    assert text.count("<script>alert(1)") > 2, "labels too"
    assert Image.open(written[1]).height < 3000, "long captions are cut in the picture"


def test_characters_without_a_font_are_told(rows, root, store, tmp_path):
    rows[0] |= {"caption": "a \ufdd0 man"}
    _, notices = write_figure(tmp_path, shown(write(tmp_path / "captions", rows), store, root))
    assert len(notices) == 1
    assert notices[0].startswith("captions.png: 1 character is in no installed font")


def test_missing_captions_and_images_are_told(rows, root, store, tmp_path):
    rows[0] |= {"caption": None, "raw_text": None, "status": "image_error", "error": "cut off"}
    rows[1] |= {"caption": None, "status": "unparsed"}
    Image.new("RGB", (9, 9)).save(root / rows[2]["image_path"])
    (root / rows[3]["image_path"]).unlink()
    found = shown(write(tmp_path / "captions", rows), store, root)
    assert found.source.endswith("; 2 without a usable caption")
    images = {image.path: image for image in found.persons[0].images}
    assert images[rows[0]["image_path"]].problem.startswith("image error: the image could not be read")
    assert images[rows[0]["image_path"]].problem.endswith(": cut off")
    assert images[rows[1]["image_path"]].text == "A man in a red shirt.", "the raw text of an unparsed caption"
    assert [images[row["image_path"]].image.problem for row in rows[:4]] == [None, None, "changed", "missing"]
    sheet, _ = draw(found)
    pixels = np.asarray(sheet)
    for color in (GRAY, WRONG, INK):
        assert (pixels == color).all(axis=2).any()
    write_figure(tmp_path, found)
    words = Page((tmp_path / "captions.html").read_text()).words
    for word in ("no caption", "image changed", "image missing"):
        assert word in words


# Finding captions -------------------------------------------------------------------------------------


def artifact(store, rows, stage="caption", recipe="", **ingredients):
    ref = make_artifact(store, stage, ingredients, lambda folder: write(folder, rows)).ref
    if recipe:
        store.record_use(ref, dataset=recipe, recipe=recipe)
    return ref


def test_captions_are_named_by_recipe_fingerprint_or_folder(rows, root, store, tmp_path, capsys):
    ref, control = artifact(store, rows, recipe="demo"), artifact(store, rows, stage="caption_control", by="hand")
    for name in ("demo", ref.fingerprint[:9], f"caption/{ref.fingerprint}", str(ref.folder)):
        assert folder_named(name, store, KIND) == ref.folder
    assert folder_named(control.fingerprint, store, KIND) == control.folder
    words = ["paper", "captions", "demo", "--home", str(store.root), "--out", str(tmp_path / "out")]
    assert main([*words, "--images", str(root), "--identities", "2", "--each", "1"]) == 0
    assert f"picture   {tmp_path / 'out/captions.png'}" in capsys.readouterr().out
    assert "Captions of demo" in Page((tmp_path / "out/captions.html").read_text()).words
    assert main(words) == 0, "the folder of the images is unknown"
    assert "their folder is unknown; name it with --images FOLDER" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo", "the recipe demo has not been captioned in"),
        ("demo", "run `clip-scgi caption demo` first"),
        ("nobody", "'nobody' does not name captions: it is not a folder with captions.parquet"),
    ],
)
def test_without_captions_the_message_says_what_to_do(store, tmp_path, capsys, name, message):
    assert main(["paper", "captions", name, "--home", str(store.root), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_without_any_caption_or_that_is_damaged_is_refused(rows, root, store, tmp_path, capsys):
    bare = [row | {"caption": None, "raw_text": None, "status": "server_error"} for row in rows]
    with pytest.raises(ConfigError, match=r"none of the 8 images in .* has a caption \(server_error\)"):
        shown(write(tmp_path / "bare", bare), store, root)
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "captions.parquet").write_text("PAR1")
    assert main(["paper", "captions", str(folder), "--home", str(store.root), "--out", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.xdist_group("flow")
def test_the_captions_of_a_run_need_no_folder(finished, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(finished[0], home, ignore=shutil.ignore_patterns("work", "prefect", "datasets"))
    assert main(["paper", "captions", "demo", "--home", str(home), "--out", str(tmp_path)]) == 0
    page = Page((Path(tmp_path) / "captions.html").read_text())
    assert len([tag for tag, _ in page.elements if tag == "img"]) >= 12
    assert not page.classed("missing")
