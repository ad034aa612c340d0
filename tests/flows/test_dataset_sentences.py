"""The sentences of a dataset in the flow: captions, search by text, what runs again and why, and the check."""

from __future__ import annotations

import json

import pytest

from data.artifacts.store import ArtifactStore
from data.files import read_json
from flows.costs.costs import costs_of
from flows.preflight.finding import texts_of
from flows.preflight.inspection import inspect
from flows.recipes import ExaminedRecipe, build_recipe
from flows.summary import RunSummary
from tests.helpers.data_trees import described, put, settle
from tests.helpers.small_runs import ON_CPU

pytestmark = pytest.mark.xdist_group("flow")

SMALL = ["train.batch.identities=3", "train.batch.images=2", "train.schedule.epochs=1"]
DATASET = ["caption.engine=dataset", "caption.template=free"]
TEXT_TO_IMAGE = "sentences of text to image changed"
COLORS = ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def root(module_folder):
    """A CUHK-PEDES tree of three training and two test identities with two images each."""
    rows = [
        described(split, pid, f"cam_a/{pid}_{image}.png", f"A man in a {COLORS[image]} coat, {pid}.", f"Person {pid}.")
        for split, pids in (("train", (1, 2, 3)), ("test", (12004, 12005)))
        for pid in pids
        for image in range(2)
    ]
    root = module_folder("data") / "CUHK-PEDES"
    put(root, *(f"imgs/{row['file_path']}" for row in rows))
    write(root, rows)
    settle()
    return root


def write(root, rows):
    (root / "reid_raw.json").write_text(json.dumps(rows))


def reworded(root, number, place, sentence):
    rows = json.loads((root / "reid_raw.json").read_text())
    rows[number]["captions"][place] = sentence
    write(root, rows)


def recipe_of(root, *overrides, reader="cuhk_pedes"):
    reader = [f"data.root={root}", f"data.reader={reader}", f"data.name={reader}"]
    return build_recipe("demo", [*ON_CPU, *SMALL, *reader, *overrides])


def run(home, root):
    from flows.pipeline import caption_and_train  # Prefect reads its settings when it is first imported

    return RunSummary.model_validate(caption_and_train(recipe_of(root, *DATASET), home=str(home)))


def reasons(summary):
    return {stage.stage: stage.reason for stage in summary.stages if stage.status == "ran"}


@pytest.mark.usefixtures("prefect_server")
def test_a_run_trains_on_the_sentences_and_searches_by_them(tmp_path, root):
    summary = run(tmp_path, root)
    assert summary["caption"].note == "10 sentences of the dataset"
    training = read_json(summary["train"].artifact.folder / "config.json")["training"]
    assert (training["images"], training["images_without_caption"]) == (6, 0)
    found = read_json(summary["evaluate"].artifact.folder / "metrics.json")["text_to_image"]
    assert (found["source"], found["n_sentences"], found["n_gallery"], found["n_skipped"]) == ("dataset", 8, 4, 0)
    page = (summary["report"].artifact.folder / "report.html").read_text()
    assert "the first path of each test identity is a query (2)" in page
    assert reasons(run(tmp_path, root)) == {}

    reworded(root, 0, 1, "Other words that are not a caption.")
    assert list(reasons(run(tmp_path, root))) == ["index", "report"]
    reworded(root, 6, 1, "Other words about somebody in the test.")
    why = reasons(run(tmp_path, root))
    assert (why["index"], why["evaluate"]) == ("sentences changed: those of 1 image", TEXT_TO_IMAGE)
    assert not {"caption", "audit", "train"} & set(why)
    reworded(root, 0, 0, "A woman in a black coat.")
    why = reasons(run(tmp_path, root))
    assert why["caption"] == "dataset sentences changed"
    assert why["train"] == "captions changed: 1 with another text"


def problems(home, recipe):
    return texts_of(inspect(ArtifactStore(home), ExaminedRecipe(recipe), "train").problems)


def test_the_check_accepts_sentences_and_measures_no_captioner(tmp_path, root):
    found = inspect(ArtifactStore(tmp_path), ExaminedRecipe(recipe_of(root, *DATASET)), "evaluate")
    assert texts_of(found.problems) == []
    caption, _, evaluate = costs_of(found, probe=False).stages
    assert (caption.work, caption.duration.seconds) == ("no model: captions are sentences of the dataset", 0.0)
    assert evaluate.work == "2 queries, 2 gallery images, 8 sentences"


def test_the_check_refuses_what_has_no_sentences(tmp_path, root):
    beyond = problems(tmp_path, recipe_of(root, *DATASET, "caption.sentence=5"))
    assert beyond == [
        "caption.sentence=5: no image has so many sentences (the first is number 0): set caption.sentence=0"
    ]
    people = tmp_path / "people"
    put(people, *(f"{name}/{number}.jpg" for name in "abcdefgh" for number in range(2)))
    (without,) = problems(tmp_path / "home", recipe_of(people, *DATASET, reader="folders"))
    assert without == (
        "caption.engine=dataset: the dataset folders has no sentences (data.reader=folders): set"
        " caption.engine=transformers and caption.template=scgi"
    )
    unread = recipe_of(people, *DATASET, "train.method=clip_baseline", reader="folders")
    assert problems(tmp_path / "home", unread) == []


def test_the_check_counts_training_images_without_the_sentence(tmp_path, root):
    rows = json.loads((root / "reid_raw.json").read_text())
    few = tmp_path / "few"
    put(few, *(f"imgs/{row['file_path']}" for row in rows))
    write(few, [row | {"captions": row["captions"][: 1 if number < 2 else 2]} for number, row in enumerate(rows)])
    (problem,) = problems(tmp_path / "home", recipe_of(few, *DATASET, "caption.sentence=1"))
    assert problem == (
        "caption.engine=dataset: 2 of 6 training images have no sentence number 1, more than"
        " train.max_uncaptioned=0.05: set train.max_uncaptioned=0.34"
    )
