"""The commands ``clip-scgi corrections``: what they print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from captioning.corrections import Corrections, Edit, ModelCaption
from captioning.stage.stage import CaptionStage
from data.artifacts.store import ArtifactStore
from data.index.stage import index
from data.stages.stage import RunContext
from flows.cli.app import main
from flows.recipes import build_recipe
from tests.helpers.data_trees import put

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


class Place:
    """Three pictures, their home, and the options that name both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        put(folder / "pictures", *NAMES)
        self.settings = ["--home", str(self.home), "--set", f"data.root={folder / 'pictures'}"]
        self.recipe = build_recipe("images", [f"data.root={folder / 'pictures'}"])
        self.store = ArtifactStore(self.home)
        self.images = index(self.store, config=self.recipe.data).images

    @property
    def kept(self) -> Corrections:
        return Corrections.open(self.home)

    def caption(self) -> list[str]:
        """Caption the pictures with the embedded model and return the captions."""
        made = CaptionStage(config=self.recipe.caption).make(RunContext(store=self.store, indexed=self.images))
        return pd.read_parquet(made.ref.folder / "captions.parquet")["caption"].tolist()

    def write(self, rows: list[dict]) -> str:
        pd.DataFrame(rows).to_csv(self.folder / "mine.csv", index=False)
        return str(self.folder / "mine.csv")

    def run(self, *words: str) -> int:
        recipe = ["--recipe", "images"] if words[0] == "import" else ["images"]
        return main(["corrections", words[0], *recipe, *words[1:], *self.settings])

    def edit(self, name: str, edit: Edit, text: str = "x") -> None:
        sha256 = self.images.digests()[name]
        now = self.kept.current([sha256]).get(sha256)
        self.kept.save(
            sha256,
            edit,
            author="ada",
            expected_revision=now.revision if now else 0,
            against=ModelCaption(text, "f" * 32),
        )


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_a_dry_run_prints_what_changes_and_saves_nothing(place, capsys):
    (model, *_) = place.caption()
    file = place.write([{"path": "a.jpg", "caption": "A man in red."}, {"path": "b.jpg", "caption": "A woman."}])
    assert place.run("import", file, "--dry-run") == 0
    told = capsys.readouterr()
    assert f"row 1  a.jpg\n  - {model[:71]}" in told.out
    assert "\n  + A man in red.\n" in told.out
    assert "dry run  2 new, 0 changed, 0 unchanged; template scgi" in told.out
    assert not (place.home / "corrections").exists()

    assert place.run("import", file) == 0
    told = capsys.readouterr()
    assert "imported  2 new, 0 changed, 0 unchanged" in told.out
    assert "images ignores corrections: run it with --set caption.corrections=use" in told.err
    entry = place.kept.current()[place.images.digests()["a.jpg"]]
    assert entry.against is not None
    assert entry.against.text == model
    assert place.run("import", file, "--set", "caption.corrections=use") == 0
    told = capsys.readouterr()
    assert "imported  0 new, 0 changed, 2 unchanged" in told.out
    assert "ignores corrections" not in told.err


def test_notices_name_the_rows_that_were_left_out(place, capsys):
    place.edit("a.jpg", Edit.of_text("By a person."))
    rows = [
        {"path": "a.jpg", "caption": "By a tool.", "attr_hair": ""},
        {"path": "b.jpg", "caption": "", "attr_hair": ""},
        {"path": "c.jpg", "caption": "A man.", "attr_hair": "bald"},
        {"path": "gone.jpg", "caption": "A man.", "attr_hair": ""},
    ]
    assert place.run("import", place.write(rows), "--skip-unknown", "--author", "a tool") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "row 1 not imported: a newer edit by a person exists; --force replaces it" in told
    assert "1 row without a caption and attributes left out" in told
    assert "1 row of images that the dataset does not have left out" in told
    assert "the attr_ columns of 1 row are not used, because the caption leads" in told
    digests = place.images.digests()
    assert place.kept.current()[digests["c.jpg"]].author == "a tool"
    assert place.kept.current()[digests["a.jpg"]].text == "By a person."
    assert place.run("import", place.write(rows[:1]), "--force") == 0
    assert place.kept.current()[digests["a.jpg"]].text == "By a tool."


def test_bad_rows_are_one_error(place, capsys):
    rows = [{"path": "gone.jpg", "caption": "A man."}, {"path": "", "caption": "A man."}]
    assert place.run("import", place.write(rows)) == 1
    told = capsys.readouterr().err
    assert "mine.csv, of which nothing was imported: 2 problems\n" in told
    assert "  - row 1: the dataset has no usable image gone.jpg" in told
    assert "  - row 2: image_path and image_sha256 are both empty" in told


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_export_and_import_change_nothing(place, capsys, name):
    place.edit("a.jpg", Edit.of_text("By a person."))
    place.edit("b.jpg", Edit.wrong())
    out = place.folder / name
    assert place.run("export", "-o", str(out)) == 0
    assert f"exported  2 corrections: {out}" in capsys.readouterr().out
    before = place.kept.file.read_bytes()
    assert place.run("import", str(out)) == 0
    assert "imported  0 new, 0 changed, 2 unchanged" in capsys.readouterr().out
    assert place.kept.file.read_bytes() == before
    assert place.run("export", "-o", str(out)) == 1
    assert "exists already: give another --output, or add --overwrite" in capsys.readouterr().err
    assert place.run("export", "-o", str(out), "--overwrite") == 0


def test_the_output_is_checked_first(place, capsys):
    assert place.run("export", "-o", str(place.folder / "out.xlsx")) == 1
    assert "the name must end in .csv or .tsv or .parquet" in capsys.readouterr().err


def test_info_counts_and_says_whether_they_are_used(place, capsys):
    assert place.run("info") == 0
    told = capsys.readouterr().out
    assert "corrected 0\n" in told
    assert "authors   none" in told
    model = place.caption()
    place.edit("a.jpg", Edit.of_text("By a person."), model[0])
    place.edit("b.jpg", Edit.of_slots({"hair": "bald"}), "another text")
    place.edit("c.jpg", Edit.reset())
    assert place.run("info", "--set", "caption.corrections=use") == 0
    told = capsys.readouterr().out
    for line in (
        "template  scgi",
        "images    3, 3 with a caption by the model",
        "corrected 2 (1 slots, 1 text)",
        "source    2 human, 0 import",
        "authors   ada 2",
        "stale     1 made against another text of the model",
        "use       caption.corrections=use: audit and training read them",
    ):
        assert line in told


def test_the_log_shows_every_change(place, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    place.edit("a.jpg", Edit.of_text("First."))
    place.edit("b.jpg", Edit.wrong())
    place.edit("a.jpg", Edit.reset())
    assert place.run("log") == 0
    told = capsys.readouterr().out
    assert [word for word in ("First.", "marked as wrong", "the model's text") if word in told] == [
        *("First.", "marked as wrong", "the model's text")
    ]
    assert "3 of 3 changes" in told
    assert place.run("log", "--image", "a.jpg", "-n", "1") == 0
    told = capsys.readouterr().out
    assert "First." not in told
    assert "1 of 2 changes" in told
    assert place.run("log", "--image", "gone.jpg") == 1
    assert "--image gone.jpg: the dataset has no such image; give a path such as a.jpg" in capsys.readouterr().err


def test_another_template_has_other_corrections(place, capsys):
    place.edit("a.jpg", Edit.of_text("First."))
    assert place.run("info", "--set", "caption.template=port45") == 0
    told = capsys.readouterr().out
    assert "template  port45" in told
    assert "corrected 0\n" in told


def test_garbage_collection_keeps_corrections(place):
    place.edit("a.jpg", Edit.of_text("First."))
    collect = ["artifacts", "gc", "--keep", "0", "--days", "0", "--delete", "--home", str(place.home)]
    assert main(collect) == 0
    assert not list((place.home / "stages" / "index").iterdir())
    assert [entry.text for entry in place.kept.everything()] == ["First."]


def test_an_export_does_not_create_folders(place, capsys):
    assert place.run("export", "-o", str(place.folder / "missing" / "c.csv")) == 1
    assert "missing does not exist; create it first" in capsys.readouterr().err
    assert not (place.folder / "missing").exists()
