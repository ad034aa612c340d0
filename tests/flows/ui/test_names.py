"""Names of datasets and runs on the page, and the dataset that a search begins with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.artifacts.inventory import take_inventory
from data.artifacts.store import ArtifactStore
from flows.ui.content.library import Run, Snapshot
from flows.ui.routes.corrections import in_words
from flows.ui.site import Site

pytestmark = pytest.mark.xdist_group("flow")


def test_the_dataset_of_the_model_comes_before_a_newer_one(finished):
    inventory = take_inventory(ArtifactStore(finished[0]))
    (index,) = (entry for entry in inventory.entries if entry.stage == "index")
    newer = replace(index, fingerprint="f" * 32, content="other", files=frozenset())
    snapshot = Snapshot(replace(inventory, entries=(*inventory.entries, newer)))
    assert [dataset.key for dataset in snapshot.datasets] == [newer.fingerprint, index.fingerprint]
    model = snapshot.entries("train")[0]
    assert snapshot.trained_on(model) == index.fingerprint
    assert snapshot.trained_on(None) == newer.fingerprint


def test_a_dataset_named_by_its_reader_alone_shows_its_folder(finished):
    home, summary = finished
    site = Site(ArtifactStore(home))
    (dataset,) = site.library.snapshot().datasets
    assert site.names([dataset]) == {dataset.key: dataset.name}
    plain = replace(
        dataset, description=dataset.description.model_copy(update={"name": "folders", "reader": "folders"})
    )
    folder = summary["index"].images_root.rstrip("/").rsplit("/", 1)[1]
    assert site.names([plain]) == {dataset.key: f"folders: {folder}"}


@pytest.mark.parametrize(
    ("recipe", "dataset", "name"),
    [
        ("zero-shot -> folders", "folders", "zero-shot -> folders"),
        ("demo -> folders", "folders", "demo -> folders"),
        ("folders", "folders", "folders"),
        ("own", "folders", "own on folders"),
    ],
)
def test_a_run_names_its_dataset_once(finished, recipe, dataset, name):
    run = Snapshot(take_inventory(ArtifactStore(finished[0]))).runs[0]
    entry = replace(run.entry, recipe=recipe)
    assert Run(entry=entry, dataset=None, model=None, protocol={"dataset": dataset}, scores=[], text=None).name == name


def test_problems_of_an_edit_use_the_labels_of_the_page():
    problem = "slots: upper_color: 'turquoise-ish' would be read as 'blue'; write 'blue'"
    assert in_words(problem) == "Upper color: 'turquoise-ish' would be read as 'blue'; write 'blue'"
    assert in_words("slots: invalid gender 'robot': expected male") == "slots: invalid gender 'robot': expected male"
