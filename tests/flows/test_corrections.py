"""Corrected captions in the flow: what runs again, and why."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from captioning.corrections import Corrections, Edit, ModelCaption
from data.artifacts.store import ArtifactStore
from data.files import read_json
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.cli.app import main
from flows.costs.costs import costs_of
from flows.preflight.check import missing, planned
from flows.preflight.finding import texts_of
from flows.preflight.inspection import inspect
from flows.recipes import ExaminedRecipe, build_recipe
from flows.summary import RunSummary
from tests.helpers.data_trees import settle
from tests.helpers.places import REPO
from tests.helpers.small_runs import FINISHED_RUN

USE = "caption.corrections=use"

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def home(finished, tmp_path) -> Path:
    """A private copy of the finished run."""
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    settle()
    return copy


def recipe_of(*overrides: str):
    return build_recipe("demo", overrides, size=FINISHED_RUN)


def run(home: Path, *overrides: str) -> RunSummary:
    from flows.pipeline import caption_and_train

    return RunSummary.model_validate(caption_and_train(recipe_of(*overrides), home=str(home)))


def reasons(summary: RunSummary) -> dict[str, str]:
    return {stage.stage: stage.reason for stage in summary.stages if stage.status == "ran"}


def rows(summary: RunSummary) -> pd.DataFrame:
    return pd.read_parquet(summary.captions.artifact.folder / "captions.parquet")


def correct(home: Path, row: pd.Series, text: str) -> None:
    against = ModelCaption(row["caption"], row["captioner_fingerprint"])
    kept = Corrections.open(home)
    now = kept.current([row["image_sha256"]]).get(row["image_sha256"])
    seen = now.revision if now else 0
    kept.save(row["image_sha256"], Edit.of_text(text), author="ada", expected_revision=seen, against=against)


def test_a_corrected_caption_trains_again_and_says_why(home, finished):
    model = rows(finished[1])
    trained, tested = model[model["split"] == "train"].iloc[0], model[model["split"] == "query"].iloc[0]
    text = "A young man is wearing a pink dress."
    correct(home, trained, text)
    assert reasons(run(home)) == {}  # ignored by default

    first = run(home, USE)
    why = reasons(first)
    assert list(why) == ["correct", "audit", "train", "evaluate", "report"]
    assert why["correct"] == "first run"
    assert why["train"] == "captions changed: 1 by corrections"
    assert first["correct"].note == "1 caption corrected: 1 text"
    assert set(rows(first).query("source == 'human'")["caption"]) == {text}
    page = (first["report"].artifact.folder / "report.html").read_text()
    assert "1 of 44 are corrections by people or imported." in page
    assert reasons(run(home, USE)) == {}

    # A caption of a query is not trained with: it is a sentence that searches the gallery.
    correct(home, tested, text)
    stages = planned(recipe_of(USE), "report")
    store = ArtifactStore(home)
    indexed = IndexedImages(ref=first["index"].artifact, root=Path(first["index"].images_root or ""))
    assert list(missing(RunContext(store=store, indexed=indexed), recipe_of(USE), stages)) == ["evaluate"]
    why = reasons(run(home, USE))
    assert list(why) == ["correct", "audit", "evaluate", "report"]
    assert why["correct"] == "corrections changed: text 1 -> 2"

    correct(home, trained, "An old man is wearing a green coat.")
    assert "train" in missing(RunContext(store=store, indexed=indexed), recipe_of(USE), stages)
    assert reasons(run(home)) == {}


def test_imported_captions_train_without_a_captioning_model(home, finished, capsys):
    """Every caption comes from a file; an image without one is a row with its status, and is not trained with."""
    overrides = ["caption.engine=imported", USE, "train.max_uncaptioned=0.1"]
    model = rows(finished[1])
    trained = model[model["split"] == "train"]
    file = home / "captions.csv"
    listed = model[model["image_path"] != trained["image_path"].iloc[0]]
    listed[["image_path", "caption"]].to_csv(file, sep=";", index=False, encoding="utf-8-sig")
    settings = [f"--set={text}" for text in [*FINISHED_RUN, *overrides]]
    assert main(["corrections", "import", str(file), "--recipe", "demo", "--home", str(home), *settings]) == 0
    assert f"imported  {len(listed)} new, 0 changed, 0 unchanged; template scgi" in capsys.readouterr().out

    summary = run(home, *overrides)
    assert summary["caption"].note == "no captioning model"
    made = rows(summary)
    assert made["status"].value_counts().to_dict() == {"ok": len(listed), "missing": 1}
    assert set(made["model_id"]) == {"imported"}
    trained_with = read_json(summary["train"].artifact.folder / "config.json")["training"]
    assert (trained_with["images"], trained_with["images_without_caption"]) == (len(trained) - 1, 1)
    assert "captioner" in (summary["report"].artifact.folder / "report.html").read_text()


def inspected(home: Path, *overrides: str):
    return inspect(ArtifactStore(home), ExaminedRecipe(recipe_of(*overrides)), "train")


def test_the_check_names_corrections_and_too_few_imported_captions(home, finished):
    first = rows(finished[1]).query("split == 'train'").iloc[0]
    (notice,) = texts_of(inspected(home, USE, "train.seed=5").notices)
    assert notice == "caption.corrections=use: corrections for this dataset: none"
    assert texts_of(inspected(home, USE).notices) == []  # all artifacts exist, and no text is another one

    imported = [USE, "caption.engine=imported"]
    (problem,) = texts_of(inspected(home, *imported).problems)
    assert problem.startswith(
        "caption.engine=imported: none of the 44 images has an imported caption for template scgi"
    )
    correct(home, first, "A man is wearing a red coat.")
    (problem,) = texts_of(inspected(home, *imported).problems)
    assert "23 of 24 training images have no imported caption, more than train.max_uncaptioned=0.05" in problem
    assert problem.endswith("or set train.max_uncaptioned=0.96")
    found = inspected(home, *imported, "train.max_uncaptioned=0.96")
    assert texts_of(found.problems) == []
    assert "caption.corrections=use: corrections for this dataset: 1 text" in texts_of(found.notices)
    (caption, _) = costs_of(found, probe=False).stages
    assert (caption.work, caption.duration.seconds) == ("no model: captions are imported", 0.0)

    history = Corrections.open(home).file
    history.write_bytes(b"{}\n")
    (problem,) = texts_of(inspected(home, USE, "train.seed=5").problems)
    assert "line 1 is damaged" in problem


SECTION = (REPO / "docs" / "captions.md").read_text(encoding="utf-8").split("## Correct captions")[1].split("\n## ")[0]
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", SECTION, re.S) for line in block.splitlines()]


def test_the_commands_of_the_documentation_work(home, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows(finished[1])[["image_path", "caption"]].to_csv("captions.csv", index=False)
    settings = [f"--set={text}" for text in FINISHED_RUN]
    assert len(COMMANDS) == 7
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        until = ["--until", "caption"] if words[0] == "run" else []
        assert main([*words, *until, "--home", str(home), *settings]) == 0, command
    told = capsys.readouterr().out
    assert "dry run  44 new, 0 changed, 0 unchanged" in told
    assert "exported  44 corrections" in told
    assert "corrected 44 (44 text)" in told
