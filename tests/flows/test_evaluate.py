"""``clip-scgi evaluate`` with a model trained elsewhere, without training, its breakdown, and its check of a model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from data.artifacts.contents import image_contents
from data.artifacts.store import ArtifactStore
from data.errors import ConfigError
from data.index.stage import index
from data.synthetic.world import WorldConfig, write_market1501
from flows.cli.app import main
from flows.cli.commands import app
from flows.cli.scoring.anywhere import show_details_of_run
from flows.comparison.runs import find_run
from flows.recipes import build_recipe
from reid import Embedder
from reid.config.train import TrainConfig
from reid.evaluation.independence import TOLERANCE
from reid.export.card import model_card
from reid.export.provenance import model_facts
from reid.metrics import evaluate_ranking
from tests.helpers.places import REPO, working_copy
from tests.helpers.small_models import write_model
from tests.helpers.small_runs import FINISHED_RUN

FOLDERS = ["folders", "--set", "data.reader=manifest", "--set", "data.root=mine", "--set", "evaluate.device=cpu"]
"""The test images of `base`, as the recipe folders: queries and gallery, but no training split."""


ORIGIN = {"dataset": "folders", "dataset_hash": "4dd53bfe" * 4, "version": None, "images": "0" * 32}
ORIGIN |= {"captions": None, "weights": {}, "python": "3", "libraries": {}}


@pytest.fixture(scope="module")
def base(module_folder):
    """A home with a model that a recipe demo trained, and a folder with queries and gallery of other people."""
    base = module_folder("evaluate")
    world = WorldConfig(seed=3, train_identities=2, test_identities=4, cameras=3, images_per_camera=2)
    market = write_market1501(base / "market", world)
    rows = []
    for folder, split in (("query", "query"), ("bounding_box_test", "gallery")):
        for path in sorted((market / folder).glob("*.jpg")):
            pid, camera = re.match(r"(-?\d+)_c(\d)", path.name).groups()
            (base / "mine").mkdir(exist_ok=True)
            shutil.copyfile(path, base / "mine" / f"{split}-{path.name}")
            rows.append({"path": f"{split}-{path.name}", "split": split, "pid": int(pid), "camid": int(camera)})
    pd.DataFrame(rows).to_csv(base / "mine" / "manifest.csv", index=False)
    store = ArtifactStore(base / "home")
    store.record_use(write_model(store, provenance={"dataset": "demo"}), dataset="demo", recipe="demo")
    return base


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    """The same in a folder that the test may change, which is the working folder."""
    return working_copy(base, tmp_path, monkeypatch, columns=200)


def evaluations(place) -> list[dict]:
    return [json.loads(path.read_text()) for path in (place / "home/stages/evaluate").glob("*/metrics.json")]


def test_a_model_of_another_dataset_is_evaluated_once_however_it_is_named(place, capsys):
    embedder = Embedder.load("demo", device="cpu")
    copy = place / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(embedder.model.folder / name, copy / name)
    assert main(["evaluate", *FOLDERS, "--model", "demo"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"✓ evaluate +ran", shown.err)
    assert re.search(r"^demo -> folders.*: \d+ queries, \d+ gallery images *$", shown.out, re.MULTILINE)
    assert f"train/{embedder.fingerprint} (clip_scgi), trained on demo, tested on folders" in shown.out
    for name in (f"train/{embedder.fingerprint[:8]}", str(embedder.model.folder), str(copy)):
        assert main(["evaluate", *FOLDERS, "--model", name]) == 0
        shown = capsys.readouterr()
        assert re.search(r"✓ evaluate +cached", shown.err)
        assert "demo -> folders" in shown.out
    assert main(["artifacts", "ls", "--stage", "evaluate"]) == 0
    assert "demo -> folders" in capsys.readouterr().out

    (metrics,) = evaluations(place)
    assert metrics["protocol"]["trained_on"] == "demo"
    rows = pd.read_csv("mine/manifest.csv")
    features = embedder.embed_images([place / "mine" / path for path in rows["path"]], mode="fused")
    query, gallery = (rows["split"] == split for split in ("query", "gallery"))
    expected = evaluate_ranking(
        *(features[part] for part in (query, gallery)),
        *(rows[name][part] for name in ("pid", "camid") for part in (query, gallery)),
    )
    (fused,) = (row for row in metrics["results"] if row["mode"] == "fused")
    assert (fused["mAP"], fused["rank1"]) == pytest.approx((expected.mAP, expected.cmc[0]), abs=1e-6)
    assert not (place / "home/stages/features").exists(), "features are kept for a breakdown only"


def test_a_model_of_other_images_is_not_the_run_of_a_recipe_of_the_same_name(place, capsys):
    store = ArtifactStore(place / "home")
    model = write_model(store, TrainConfig(device="cpu", seed=7), provenance=ORIGIN, images="0" * 64)
    store.record_use(model, dataset="folders", recipe="folders")
    assert main(["evaluate", *FOLDERS, "--model", model.fingerprint]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("folders (4dd53bfe) -> folders")
    tested = index(store, config=build_recipe("folders", FOLDERS[2::2]).data)
    assert f"trained on folders (4dd53bfe), tested on folders ({tested.found.dataset_hash[:8]})" in shown
    assert main(["artifacts", "ls", "--stage", "evaluate"]) == 0
    assert "folders (4dd53bfe) -> folders" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the recipe folders has not been evaluated"):
        find_run("folders", store)

    trained = image_contents(tested.made.ref)["train"]
    own = write_model(store, TrainConfig(device="cpu", seed=8), provenance=ORIGIN, images=trained)
    store.record_use(own, dataset="folders", recipe="folders")
    assert main(["evaluate", *FOLDERS, "--model", own.fingerprint]) == 0
    assert capsys.readouterr().out.startswith("folders: 12 queries")
    assert find_run("folders", store).recipe == "folders"


def test_the_model_card_tells_apart_datasets_of_one_name(place):
    store = ArtifactStore(place / "home")
    shutil.copytree("mine", "theirs")
    rows = pd.read_csv("mine/manifest.csv")
    rows[rows["pid"] != rows["pid"].max()].to_csv("theirs/manifest.csv", index=False)
    model, hashes = write_model(store, TrainConfig(device="cpu", seed=9), provenance=ORIGIN), []
    for root in ("mine", "theirs"):
        words = [word.replace("root=mine", f"root={root}") for word in FOLDERS]
        assert main(["evaluate", *words, "--model", model.fingerprint]) == 0
        hashes.append(index(store, config=build_recipe("folders", words[2::2]).data).found.dataset_hash[:8])
    facts = model_facts(model, store)
    names = [f"folders ({short})" for short in hashes]
    assert [one.dataset for one in facts.evaluations] == names
    card = model_card(facts, {}, {}, [])
    for name in names:
        assert f"### {name}\n" in card
        assert f'"name": "{name}"' in card


def test_clip_is_evaluated_without_any_training(place, capsys):
    assert main(["evaluate", *FOLDERS, "--zero-shot"]) == 0
    shown = capsys.readouterr()
    assert "CLIP without training (tiny, weights shipped), tested on folders" in shown.out
    assert "this mode is not available: the model is untrained" in shown.out
    assert "percent, with the 95 % interval (percentile bootstrap" in shown.out
    (metrics,) = evaluations(place)
    assert [(row["model"], row["mode"]) for row in metrics["results"]] == [("untrained", "image")]
    assert "trained_on" not in metrics["protocol"]
    assert not list((place / "home/stages").glob("caption*"))
    assert main(["evaluate", *FOLDERS, "--zero-shot", "--set", "train.method=clip_baseline"]) == 0
    assert re.search(r"✓ evaluate +cached", capsys.readouterr().err)


def test_a_breakdown_is_printed_and_written(place, capsys):
    words = ["evaluate", *FOLDERS, "--model", "demo", "--breakdown", "-o", "out/new"]
    (place / "out/new").mkdir(parents=True)
    (place / "out/new/attributes.parquet").touch()  # of an earlier evaluation
    assert main(words) == 0
    shown = capsys.readouterr()
    assert re.search(r"✓ features +ran", shown.err)
    assert "! no attributes: these images are not captioned here" in shown.err
    pairs = pq.read_table("out/new/camera_pairs.parquet").to_pylist()
    leading = [row for row in pairs if (row["model"], row["mode"]) == ("trained", "image")]
    assert len(leading) == 6, "three cameras"
    assert "per camera pair (trained, image)" in shown.out
    for row in leading:
        line = rf"^ {row['query_camid']} +{row['gallery_camid']} +{row['n_queries']} +{100 * row['mAP']:.1f} "
        assert re.search(line, shown.out, re.MULTILINE)
    written = {path.name for path in (place / "out/new").iterdir()}
    assert {"rank_lists.parquet", "features-trained-fused.parquet", "metrics.json"} <= written
    assert "attributes.parquet" not in written, "it has no rows"
    assert "attributes.parquet" not in shown.out
    assert all(f"written   out/new/{name}" in shown.out for name in written)
    assert main(words) == 0
    assert not re.search(r"✓ \w+ +ran", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*FOLDERS, "--model", "demo", "--zero-shot"],
            "--zero-shot is the untrained CLIP of the recipe; leave out",
        ),
        ([*FOLDERS, "--model", "demo", "--set", "train.seed=3"], "--set train.seed=3 has no effect on a trained model"),
        ([*FOLDERS, "--model", "nobody"], "'nobody' does not name a trained model"),
        (
            [*FOLDERS, "--model", "demo", "-o", "mine/manifest.csv"],
            "mine/manifest.csv is not a folder that can be",
        ),
        ([*FOLDERS, "-o", "mine/manifest.csv"], "mine/manifest.csv is not a folder that can be written"),
        ([*FOLDERS, "--model", "demo", "--mode", "image"], "--mode goes with --check-independence"),
        (["--model", "demo"], "name a recipe, such as `clip-scgi evaluate demo`"),
        (["--model", "demo", "--check-independence", "demo"], "--check-independence goes with --mode, --tolerance"),
        (["--check-independence", "nobody"], "'nobody' does not name a trained model"),
        (["--check-independence", "demo", "--mode", "both"], "no mode 'both'; give one of image, fused, joint"),
        (["images", "--set", "data.root=mine", "--model", "demo"], "data.reader=images does not know identities"),
        ([*FOLDERS[:-1], "evaluate.device=cuda:9", "--model", "demo"], "evaluate.device=cuda:9"),
    ],
)
def test_what_cannot_work_is_one_message(place, capsys, words, message):
    assert main(["evaluate", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert evaluations(place) == []


def test_images_of_the_training_are_told(place, capsys):
    store = ArtifactStore(place / "home")
    rows = pd.read_csv("mine/manifest.csv")
    (place / "whole").mkdir()
    for path in rows["path"]:
        shutil.copyfile(place / "mine" / path, place / "whole" / path)
    rows.assign(split="train").to_csv("whole/manifest.csv", index=False)
    recipe = build_recipe("folders", ["data.reader=manifest", "data.root=whole"])
    trained = index(store, config=recipe.data).made.ref
    model = write_model(store, provenance={"dataset": "whole", "images": trained.fingerprint})
    assert main(["evaluate", *FOLDERS, "--model", model.fingerprint]) == 0
    people = (rows["pid"] >= 0).sum()
    assert f"! {people} of the queries and gallery images were training images of this model" in capsys.readouterr().err


def test_without_the_start_weights_the_trained_model_is_evaluated_alone(place, capsys):
    provenance = {"dataset": "demo", "weights": {"files": {"model.safetensors": "0" * 64}}}
    config = TrainConfig(method="clip_baseline", device="cpu", seed=5)
    model = write_model(ArtifactStore(place / "home"), config, provenance=provenance)
    assert main(["evaluate", *FOLDERS, "--model", model.fingerprint]) == 0
    shown = capsys.readouterr()
    assert "the untrained model is not evaluated beside the trained one: train.backbone.weights=shipped is" in shown.err
    assert "this mode is not available: the model was trained without CFF" in shown.out
    (metrics,) = evaluations(place)
    assert [(row["model"], row["mode"]) for row in metrics["results"]] == [("trained", "image")]


def test_the_tolerance_of_the_command_is_that_of_the_check():
    (option,) = (one for one in get_command(app).commands["evaluate"].params if one.name == "tolerance")
    assert option.default == TOLERANCE


@pytest.mark.parametrize("images", [[], FOLDERS])
def test_a_sound_model_passes_the_check(place, capsys, images):
    assert main(["evaluate", *images, "--check-independence", "demo", "--mode", "image"]) == 0
    shown = capsys.readouterr().out
    assert "passed: an embedding depends on its own image only" in shown
    lines = re.findall(r"^ image +(\w[\w ,]*\w) +\d\.\de[+-]\d\d +passed", shown, re.MULTILINE)
    assert lines == ["alone, again", "in one batch", "shuffled", "sorted by path", "with other company"]


def test_a_batch_norm_left_in_training_mode_fails_the_check(place, capsys, monkeypatch):
    from reid.embedding import embedder
    from reid.training.checkpoint import load_task

    def careless(folder, device):
        import torch

        task = load_task(folder, device)
        joint, width = task.encode_joint, task.backbone.joint_width
        norm = torch.nn.BatchNorm2d(width).to(device).train()

        def encode_joint(images, cameras=None):
            features = joint(images, cameras)
            return norm(features[:, :, None, None].expand(-1, -1, 2, 1))[..., 0, 0]

        task.encode_joint = encode_joint
        return task

    monkeypatch.setattr(embedder, "load_task", careless)
    assert main(["evaluate", "--check-independence", "demo", "--mode", "joint"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED: embeddings in mode joint depend on the other images of a batch" in shown
    assert main(["evaluate", "--check-independence", "demo", "--mode", "image"]) == 0


# The commands of docs/evaluation.md

PAGE = (REPO / "docs/evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("clip-scgi evaluate")
]
ELSEWHERE = [line for line in COMMANDS if re.search("--(model|zero-shot|check-independence)", line)]
PEOPLE = ["synthetic.train_identities=2", "synthetic.test_identities=2", "synthetic.cameras=2"]


def sets(*settings: str) -> list[str]:
    return [part for text in settings for part in ("--set", text)]


def write_people(place) -> None:
    """Make the folder people: one folder per person of the test images."""
    for path in (place / "mine").glob("*.jpg"):
        pid = re.search(r"-(-?\d+)_c", path.name)[1]
        if int(pid) > 0:
            (place / "people" / pid).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / "people" / pid / path.name)


def test_people_that_are_left_for_training_are_told(place, capsys):
    write_people(place)
    words = ["evaluate", "folders", "--zero-shot", *sets("data.root=people", "evaluate.device=cpu")]
    notice = "! 2 people are left for training, and only 2 are tested; to test on all of them, add --set data.train_f"
    assert main(words) == 0
    assert notice in capsys.readouterr().err
    assert main([*words, *sets("data.train_fraction=0")]) == 0
    assert "left for training" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ELSEWHERE)
def test_the_commands_of_the_page_run(place, capsys, command):
    write_people(place)
    words = [word.replace("/data/people", "people") for word in shlex.split(command)[1:]]
    small = sets(*PEOPLE, "evaluate.device=cpu") if "benchmark" in words else []
    assert main([*words, *small]) == 0
    shown = capsys.readouterr().out
    assert "mAP" in shown or "passed: an embedding depends on its own image only" in shown
    if "--out" in words:
        (code,) = (block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if "rank_lists" in block)
        exec(compile(code, "docs/evaluation.md", "exec"), {})
        (metrics,) = evaluations(place)
        r1 = next(row["rank1"] for row in metrics["results"] if (row["model"], row["mode"]) == ("trained", "image"))
        assert f"R1: {r1}" in capsys.readouterr().out


@pytest.mark.xdist_group("flow")
def test_the_commands_of_the_page_run_on_a_finished_demo(finished, tmp_path, capsys, monkeypatch):
    home, _ = finished
    shutil.copytree(home, tmp_path / "home", dirs_exist_ok=True)
    monkeypatch.setattr("flows.cli.run.prefect_server", lambda _: nullcontext())
    commands = [line for line in COMMANDS if line not in ELSEWHERE]
    assert len(commands) == 3
    for command in commands:
        small = sets(*FINISHED_RUN)
        assert main([*shlex.split(command)[1:], *small, "--home", str(tmp_path / "home")]) == 0
        shown = capsys.readouterr()
        assert re.search(r"✓ train +cached", shown.err)
        assert ("k-reciprocal re-ranking with k1 = 20, k2 = 6, lambda = 0.3" in shown.out) == ("rerank" in command)


@pytest.mark.xdist_group("flow")
def test_the_details_of_a_run_have_the_attributes_of_its_audit(finished, tmp_path, capsys, monkeypatch):
    home, summary = finished
    shutil.copytree(home, tmp_path / "home", dirs_exist_ok=True)
    moved = json.loads(summary.model_dump_json().replace(str(home), str(tmp_path / "home")))
    monkeypatch.setenv("COLUMNS", "200")
    small = ["synthetic.seed=7", "evaluate.device=cpu", "caption.device=cpu"]
    shutil.rmtree(tmp_path / "home/stages/audit")  # made again from the captions
    show_details_of_run("demo", small, moved, out=tmp_path / "out", breakdown=True, home=tmp_path / "home")
    shown = capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "out/attributes.parquet")
    audit = next((tmp_path / "home/stages/audit").glob("*/identities.parquet"))
    identities = pd.read_parquet(audit)
    rankings = pd.read_parquet(next((tmp_path / "home/stages/evaluate").glob("*/rankings.parquet")))
    own = rankings[(rankings["model"] == "trained") & (rankings["mode"] == "fused")]
    gender = identities[identities["slot"] == "gender"].set_index("pid")["majority"]
    for value, part in own.groupby(own["query_pid"].map(gender)):
        found = table.query("model == 'trained' and mode == 'fused' and slot == 'gender'").set_index("value").loc[value]
        assert (found["n_queries"], found["mAP"]) == (len(part), pytest.approx(part["ap"].mean()))
    assert "per attribute (trained, image)" in shown
    assert re.search(r"^ gender +(fe)?male +\d+ +\d+\.\d \(\d+\.\d–\d+\.\d\)", shown, re.MULTILINE)
    assert np.isclose(table.query("slot == 'gender'")["n_queries"].sum(), len(rankings))
