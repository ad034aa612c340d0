"""Checks before captioning: problems of settings, index and machine, each with a key and a value that works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ConfigError
from data.files import write_table
from data.schemas import IMAGES
from flows.preflight.check import check_run, early_problems, notices_of, planned, problems_of
from flows.preflight.disk import sizes, training_bytes
from flows.preflight.finding import texts_of
from flows.preflight.inspection import check_early
from flows.preflight.machine import Memory, Processor
from flows.preflight.plan import Plan
from flows.recipes import ExaminedRecipe, Recipe, build_recipe
from reid.config.train import TrainConfig
from reid.inputs.pixel_cache import PixelStage
from reid.inputs.training_rows import batch_problems, training_rows
from reid.models.pretrained import TINY_FOLDER, TINY_WEIGHTS
from tests.helpers.data_trees import put
from tests.helpers.gpus import Gpus
from tests.helpers.stages import describe_by_hand, make_artifact, pixels, run_on

ALL = ("caption", "train", "evaluate")

SEVEN = "train.batch.identities=16 but the dataset has 7 training identities: set train.batch.identities=7 or lower"

Rows = list[tuple[str, int, int]]


def market(train: int = 20, test: int = 4, cameras: int = 2, each: int = 2) -> Rows:
    """Return (split, pid, camid) of a well-formed dataset: `each` images of each identity in turn from each camera."""
    rows = [("train", pid, camera % cameras) for pid in range(1, train + 1) for camera in range(each)]
    for pid in range(1001, 1001 + test):
        rows += [("query", pid, 0), *(("gallery", pid, camera) for camera in range(cameras))]
    return rows


def indexed(store: ArtifactStore, rows: Rows, reader: str = "market1501") -> ArtifactRef:
    """Make an index artifact of `rows`."""
    columns = dict(zip(("split", "pid", "camid"), map(list, zip(*rows, strict=True)), strict=True))
    names = [f"{number:05d}.jpg" for number in range(len(rows))]
    filler = {"path": names, "sha256": [f"{number:064x}" for number in range(len(rows))]}
    filler |= {name: [8] * len(rows) for name in ("size", "width", "height")}

    def produce(folder: Path) -> None:
        write_table(folder / "images.parquet", pa.table(columns | filler).select(IMAGES.names).cast(IMAGES), IMAGES)
        describe_by_hand(folder, reader=reader)

    return make_artifact(store, "index", {"rows": rows, "reader": reader}, produce).ref


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def check(store):
    """Return a function: rows, settings, GPUs, stages -> the problems of that plan."""

    def problems(
        rows: Rows, *settings: str, gpus: int = 0, stages: tuple[str, ...] = ALL, reader: str = "market1501"
    ) -> list[str]:
        return texts_of(problems_of(plan_of(store, build_recipe("demo", settings), rows, gpus, stages, reader=reader)))

    return problems


def plan_of(
    store: ArtifactStore,
    recipe: Recipe,
    rows: Rows,
    gpus: int = 0,
    stages: tuple[str, ...] = ALL,
    *,
    reader: str = "market1501",
) -> Plan:
    return Plan(
        run=run_on(store, indexed(store, rows, reader)),
        caption=recipe.caption,
        train=recipe.train,
        evaluate=recipe.evaluate,
        scale=recipe.scale,
        data=recipe.data,
        stages=frozenset(stages),
        cuda=Gpus(gpus),
        processor=Processor(),
        ram=lambda: Memory(1 << 40, 1 << 40),
    )


def test_a_dataset_that_fits_has_no_problem(check):
    assert check(market()) == []
    assert check(market(), "train.method=clip_baseline", "train.sie=1", "train.validation.every=1") == []


# Splits ---------------------------------------------------------------------------------------------------

OWN = "add some, or set data.split=by_identity to split its identities by rule"


TRAIN_LACKS = "train needs images with split=train, but the dataset has none with split=train: "
TEST_LACKS = "evaluate needs images with split=query and split=gallery, but the dataset has none with split="
STOP_AT_TRAIN, STOP_AT_CAPTION = (f", or stop before it (clip-scgi {stage})" for stage in ("train", "caption"))


@pytest.mark.parametrize(
    ("kept", "settings", "message"),
    [
        (("train",), (), f"{TEST_LACKS}query or split=gallery: {OWN}{STOP_AT_TRAIN}"),
        (("train", "gallery"), (), f"{TEST_LACKS}query: {OWN}{STOP_AT_TRAIN}"),
        (("query", "gallery"), (), f"{TRAIN_LACKS}{OWN}{STOP_AT_CAPTION}"),
        (
            ("query", "gallery"),
            ("data.split=by_identity", "data.train_fraction=0"),
            f"{TRAIN_LACKS}set data.train_fraction=0.5 (it is 0){STOP_AT_CAPTION}",
        ),
        (
            ("train", "gallery"),
            ("data.reader=folders",),
            f"{TEST_LACKS}query: add people, and at least two images of each{STOP_AT_TRAIN}",
        ),
    ],
)
def test_a_stage_without_the_splits_it_needs(check, kept, settings, message):
    rows = [row for row in market() if row[0] in kept]
    assert check(rows, *settings) == [message]
    assert check(rows, *settings, stages=("caption",)) == []


def test_images_without_identities_can_only_be_captioned(check, store):
    message = (
        "data.reader=images does not know identities, but train and evaluate need them: run clip-scgi caption instead, "
        "or set data.reader=folders for one folder per person"
    )
    assert check([("gallery", 0, -1)], "data.reader=images") == [message]
    assert check([("gallery", 0, -1)], "data.reader=images", stages=("caption",)) == []
    recipe = build_recipe("images", ["data.root=/nowhere"])
    assert texts_of(early_problems(store, recipe, "report")) == [message], "before the images are read"
    assert early_problems(store, recipe, "caption") == []


# Identities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("people", "settings", "message"),
    [
        (7, (), SEVEN),
        (1, (), "training needs at least 2 identities but the dataset has 1: add training images"),
        (
            17,
            ("train.validation.every=1",),
            "train.batch.identities=16 but train.validation.held_out=0.1 leaves 15 of 17 training identities: "
            "set train.batch.identities=15 or lower",
        ),
        (
            3,
            ("train.validation.every=1",),
            "train.validation.held_out=0.1 leaves 1 of 3 training identities: set train.validation.every=0 and "
            "train.batch.identities=3",
        ),
        (
            20,
            ("scale.train_processes=3",),
            "scale.train_processes=3 does not divide train.batch.identities=16: set train.batch.identities=15",
        ),
        (
            7,
            ("scale.train_processes=4",),
            "train.batch.identities=16 but the dataset has 7 training identities: set train.batch.identities=4",
        ),
        (
            3,
            ("scale.train_processes=4",),
            "train.batch.identities=16 but the dataset has 3 training identities: set train.batch.identities=3 and "
            "scale.train_processes=1",
        ),
    ],
)  # fmt: skip
def test_training_identities_fill_a_batch(check, people, settings, message):
    rows = market(train=people)
    assert check(rows, *settings) == [message]
    assert check(rows, *settings, stages=("caption",)) == [], "a run up to the captions does not need a batch"


@pytest.mark.parametrize("people", [2, 3, 7, 15])
def test_the_value_that_the_message_names_works(check, people):
    problem = check(market(train=people))[0]
    value = int(problem.rpartition("train.batch.identities=")[2].removesuffix(" or lower"))
    assert check(market(train=people), f"train.batch.identities={value}") == []


def test_junk_does_not_count_as_an_identity(check):
    rows = [*market(train=15), *[("train", -1, 0)] * 9]
    assert check(rows) == [
        "train.batch.identities=16 but the dataset has 15 training identities: set train.batch.identities=15 or lower"
    ]


def test_the_train_stage_raises_the_same_message(store):
    images = indexed(store, market(train=7))
    config = TrainConfig(method="clip_baseline")
    with pytest.raises(ConfigError, match=f"^training: {SEVEN}"):
        training_rows(run_on(store, images).images, None, config)
    assert batch_problems(range(7), config) == [SEVEN]


# Validation, cameras, evaluation --------------------------------------------------------------------------


ROOM = 77 - 5 - 3  # start and "A photo of a"; "person", "." and end


@pytest.mark.parametrize("backbone", ["tiny", "vit_b16"])
def test_learned_prompts_fit_into_the_text_tower(check, backbone):
    clip = ("train.method=clip_reid", f"train.backbone.name={backbone}", "train.backbone.weights=random")
    assert check(market(), *clip, f"train.prompts.words={ROOM}") == []
    for words in (ROOM + 1, 10**6):
        (problem,) = check(market(), *clip, f"train.prompts.words={words}")
        assert problem == (
            f"train.prompts.words={words} do not fit into the 77 tokens of the text tower: set train.prompts.words="
            f"{ROOM} or lower (published: 4)"
        )
        assert check(market(), *clip, f"train.prompts.words={words}", stages=("caption", "evaluate")) == []
    (problem,) = check(market(), *clip, f"train.prompts.noun={'a person and ' * 40}")
    assert problem.startswith("train.prompts.noun makes a prompt of ")
    assert problem.endswith("set train.prompts.noun to one word, such as train.prompts.noun=person")
    assert check(market(), "train.method=clip_scgi", f"train.prompts.words={ROOM + 1}") == []


def test_validation_on_the_test_set_needs_one(check):
    settings = ("train.validation.every=1", "train.validation.images=test")
    without = [row for row in market() if row[0] == "train"]
    (problem,) = check(without, *settings, stages=("train",))
    assert problem == (
        "train.validation.images=test needs query and gallery images, and the dataset has none with split=query or "
        "split=gallery: set train.validation.images=held_out, or train.validation.every=0"
    )
    strangers = [*without, ("query", 1001, 0), ("gallery", 1002, 1)]
    (problem,) = check(strangers, *settings, stages=("train",))
    assert problem.startswith(
        "train.validation.images=test does not find a query with a gallery image of the same identity: set "
    )
    assert check(market(), *settings, stages=("train",)) == []


def test_held_out_identities_can_be_searched(check):
    settings = ("train.validation.every=1", "train.batch.identities=4")
    (problem,) = check(market(train=20, each=1), *settings)
    assert problem == (
        "train.validation.held_out=0.1 holds out identities with one image each, which cannot be searched: "
        "set train.validation.every=0"
    )
    assert check(market(train=20, each=2), *settings) == []


def test_camera_embeddings_need_known_cameras(check):
    rows = [(split, pid, -1) for split, pid, _ in market()]
    message = (
        "train.sie=1 learns one embedding per camera, but the cameras of this dataset are unknown: set train.sie=0"
    )
    assert check(rows, "train.sie=1", stages=("train",)) == [message]
    assert check(rows, stages=("train",)) == []


def test_camera_embeddings_must_cover_the_test_cameras(check):
    rows = [*market(), ("query", 1001, 8), ("gallery", 1001, 9)]
    message = (
        "train.sie=1 learns one embedding per camera, and the test images have 2 cameras without a training "
        "image (8, 9): set train.sie=0"
    )
    assert check(rows, "train.sie=1") == [message]
    assert check(rows, "train.sie=1", stages=("train",)) == []
    during = ("train.sie=1", "train.validation.every=1", "train.validation.images=test")
    assert check(rows, *during, stages=("train",)) == [message]
    assert check(rows) == []


@pytest.mark.parametrize(
    ("rows", "settings", "part"),
    [
        (market(cameras=1), (), "from another camera"),
        ([*market(test=0), ("query", 1, 0), ("gallery", 2, 1)], (), "none of the queries in"),
        (
            [*market(test=0), ("query", 1001, 0), ("gallery", 1002, 1)],
            ("evaluate.gallery_draws=3",),
            "none of the queries",
        ),
    ],
)
def test_a_test_split_that_cannot_be_evaluated(check, rows, settings, part):
    (problem,) = check(rows, *settings)
    assert part in problem
    assert check(rows, *settings, stages=("caption", "train")) == []


def test_data_without_cameras_is_evaluated_without_the_camera_rule(check):
    rows = market(cameras=1)
    assert "evaluate.exclude=none" in check(rows)[0]
    assert check(rows, "evaluate.exclude=none") == []


def test_queries_that_are_skipped_are_a_notice(store):
    rows = [*market(), ("query", 5001, 0)]
    plan = plan_of(store, build_recipe("demo"), rows)
    assert problems_of(plan) == []
    (notice,) = texts_of(notices_of(plan))
    assert "1 of 5 queries" in notice


# The machine ----------------------------------------------------------------------------------------------


def test_devices_that_do_not_exist(check):
    settings = [f"{stage}.device=cuda:2" for stage in ALL]
    problems = check(market(), *settings, gpus=2)
    assert [problem.partition("=")[0] for problem in problems] == [f"{stage}.device" for stage in ALL]
    assert check(market(), *settings, gpus=3) == []
    assert check(market(), *settings, gpus=2, stages=("train",)) == problems[1:2]
    assert check(market(), "train.device=cuda")[0].startswith(
        "train.device=cuda: this machine has no usable CUDA device"
    )


def test_processes_and_gpus(check):
    assert check(market(), "scale.train_processes=4") == []
    (problem,) = check(market(), "scale.train_processes=4", gpus=2)
    assert problem.endswith("this machine has 2; set scale.train_processes=2, or train.device=cpu")
    (problem,) = check(market(), "scale.train_processes=2", "train.device=cuda:1", gpus=2)
    assert problem.endswith("set train.device=cuda, or scale.train_processes=1")


def test_fp16_needs_a_gpu(check):
    message = "train.precision=fp16 needs a GPU; set train.precision=bf16, or train.precision=no"
    assert check(market(), "train.precision=fp16") == [message]
    assert check(market(), "train.precision=fp16", "train.device=cpu", gpus=1) == [message]
    assert check(market(), "train.precision=fp16", gpus=1) == []


def test_workers_that_share_a_gpu_are_a_notice(store):
    def notices(*settings: str, gpus: int) -> list[str]:
        return texts_of(notices_of(plan_of(store, build_recipe("demo", settings), market(), gpus)))

    four = "scale.caption_workers=4"
    assert notices(four, gpus=0) == notices(four, gpus=4) == notices(four, "caption.device=cpu", gpus=2) == []
    assert notices(four, gpus=2) == ["scale.caption_workers=4 share 2 GPUs; set scale.caption_workers=2"]
    (notice,) = notices(four, "caption.device=cuda:1", gpus=4)
    assert notice == "scale.caption_workers=4 share 1 GPU; set scale.caption_workers=1"


def test_the_embedded_captioner_on_images_that_were_not_drawn_is_a_notice(store):
    def notices(*settings: str, stages: tuple[str, ...] = ALL) -> list[str]:
        return texts_of(notices_of(plan_of(store, build_recipe("demo", settings), market(), stages=stages)))

    own, drawn = "data.root=/data/people", f"data.root={store.root / 'datasets' / 'synthetic-0123456789ab'}"
    (notice,) = notices(own)
    assert notice.startswith("caption.model=tiny has only learned drawn people")
    assert "set caption.model=llava-hf/llava-1.5-7b-hf" in notice
    assert notices() == notices(drawn) == notices(own, stages=("train", "evaluate")) == []
    (other,) = notices(own, "caption.model=llava-hf/llava-1.5-7b-hf")
    assert "drawn people" not in other


def test_plans_of_these_tests_do_not_depend_on_the_memory_of_this_machine(store, monkeypatch):
    monkeypatch.setattr("flows.preflight.machine.psutil.virtual_memory", lambda: pytest.fail("asked this machine"))
    assert notices_of(plan_of(store, build_recipe("demo"), market())) == []


def test_a_runner_that_is_not_installed(check, monkeypatch):
    monkeypatch.setattr("flows.workers.ray_run.find_spec", lambda _: None)
    settings = ("scale.caption_workers=2", "scale.runner=ray")
    (problem,) = check(market(), *settings)
    assert problem.startswith("scale.runner=ray is not installed: ")
    assert check(market(), *settings, stages=("train",)) == []


# Files ----------------------------------------------------------------------------------------------------


def test_weights_of_the_backbone(check, tmp_path):
    missing = tmp_path / "missing.safetensors"
    (problem,) = check(market(), f"train.backbone.weights={missing}")
    assert str(missing) in problem
    assert "train.backbone.weights" in problem
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    (problem,) = check(market(), f"train.backbone.weights={pointer}")
    assert "git lfs pull" in problem
    assert check(market(), f"train.backbone.weights={pointer}", stages=("caption",)) == []


def test_a_tensor_that_is_missing_or_not_a_number_is_found_before_captioning(check, tmp_path):
    tensors = load_file(TINY_FOLDER / TINY_WEIGHTS)
    name = "visual.ln_post.bias"
    file = tmp_path / "model.safetensors"
    for damaged in (
        tensors | {name: np.full_like(tensors[name], np.nan)},
        {k: v for k, v in tensors.items() if k != name},
    ):
        save_file(damaged, file)
        (problem,) = check(market(), f"train.backbone.weights={file}")
        assert name in problem
        assert str(file) in problem


def test_the_captioning_model(check, tmp_path):
    (problem,) = check(market(), f"caption.model={tmp_path / 'none'}")
    assert problem.startswith(f"caption.model: folder {tmp_path / 'none'} does not exist")
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (problem,) = check(market(), f"caption.model={folder}")
    assert str(folder) in problem
    assert "tokenizer.json" in problem
    assert check(market(), f"caption.model={folder}", stages=("train", "evaluate")) == []


def test_a_captioning_model_that_the_hub_does_not_have(check):
    """The tests are offline: neither the cache nor the hub has the model; the check downloads nothing."""
    (problem,) = check(market(), "caption.model=nobody/no-such-llava")
    assert problem.startswith(
        "caption.model: the weights of nobody/no-such-llava (revision main) are not in this machine's hub cache"
    )
    assert check(market(), "caption.model=nobody/no-such-llava", stages=("train",)) == []


def test_the_key_of_a_server(check, monkeypatch):
    settings = ("caption.engine=openai", "caption.model=llava", "caption.server.key_variable=MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    (problem,) = check(market(), *settings)
    assert problem.startswith("caption.server.key_variable=MY_KEY: that environment variable is not set")
    monkeypatch.setenv("MY_KEY", "hidden")
    assert check(market(), *settings) == []


def test_a_tracking_that_is_not_installed(check, monkeypatch):
    assert check(market(), "train.tracking=mlflow") == []
    monkeypatch.setattr("flows.preflight.settings.find_spec", lambda _: None)
    (problem,) = check(market(), "train.tracking=mlflow")
    assert problem == (
        "train.tracking=mlflow is not installed: pip install 'clip-scgi[mlflow]', or set train.tracking=none"
    )


def test_folders_that_cannot_be_written(check, store, monkeypatch, tmp_path):
    file = tmp_path / "a file"
    file.write_text("")
    (problem,) = check(market(), f"train.tensorboard={file}/logs")
    assert problem.startswith("train.tensorboard")
    indexed(store, market())  # a disk that is read-only from now on
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (problem,) = check(market())
    assert problem == f"the artifact root cannot be written ({store.root}): set --home to a folder of your own"
    assert check(market(), stages=()) == [], "a run that finds everything does not write"


# The disk -------------------------------------------------------------------------------------------------


def test_what_a_run_will_write_is_estimated_from_the_index(store):
    rows = market(train=20, test=4)
    recipe = build_recipe("demo", ["train.checkpoint_every=0"])

    def wanted(*stages: str) -> dict[str, int]:
        return sizes(plan_of(store, recipe, rows, stages=stages))

    n = len(rows)
    assert wanted("caption") == {"captions": 2_000 * n}
    weights = (TINY_FOLDER / TINY_WEIGHTS).stat().st_size
    found = wanted("train")
    assert found == {"pixels": n * 128 * 64 * 3, "caption features": 40 * 2_048, "model and checkpoints": weights}
    assert wanted("evaluate") == {
        "pixels": n * 128 * 64 * 3,
        "embeddings": 12 * 3 * 5_120,
        "rankings": 4 * 50 * 300,
    }
    checkpoints = build_recipe("demo").train
    assert training_bytes(checkpoints) == 7 * weights
    best = build_recipe("demo", ["train.validation.every=1", "train.validation.keep=best"]).train
    assert training_bytes(best) == 9 * weights
    assert wanted() == {}


def test_pixels_that_exist_do_not_need_space(store, tmp_path):
    root = tmp_path / "images"
    put(root, "a.jpg", "b.jpg")
    plan = plan_of(store, build_recipe("demo"), [("train", 1, 0), ("train", 2, 0)], stages=("train",))
    assert "pixels" in sizes(plan)
    size = {"height": 128, "width": 64}
    made_of = PixelStage(**size).ingredients(plan.run)
    make_artifact(store, "pixels", made_of, lambda folder: (folder / "x").write_bytes(b"1"))
    assert "pixels" not in sizes(plan)
    assert pixels(store, images=plan.run.images.ref, images_root=root, **size).cached


def test_a_disk_that_is_too_small(check, store, monkeypatch):
    assert check(market()) == []
    monkeypatch.setattr("flows.preflight.disk.free_bytes", lambda _: 2_000_000)
    (problem,) = check(market())
    assert problem.startswith(f"the disk of the artifact root {store.root} has 2.0 MB free and this run writes up to ")
    assert "up to 42." in problem
    assert "pixels 1.3 MB" in problem
    assert "free 40." in problem
    assert "or set --home to a folder on a larger disk" in problem


# All together, and only what will run ---------------------------------------------------------------------


def test_all_problems_are_one_message(store, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = build_recipe(
        "demo", ["train.device=cuda", "train.precision=fp16", "train.sie=1", "caption.model=/nowhere/at/all"]
    )
    images = indexed(store, [*market(train=7), ("query", 1001, 9)])
    with pytest.raises(ConfigError) as caught:
        check_run(run_on(store, images), recipe, "report")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(": 5 problems")
    for key in (
        "train.device=cuda",
        "train.precision=fp16",
        "train.sie=1",
        "caption.model",
        "train.batch.identities=16",
    ):
        assert sum(line.startswith(f"  - {key}") for line in lines) == 1, key


def test_planned_stages():
    def stages(name: str, until: str) -> tuple[str, ...]:
        return planned(build_recipe(name), until)

    assert stages("demo", "report") == ("caption", "audit", "train", "evaluate", "report")
    assert stages("demo", "train") == ("caption", "audit", "train")
    assert stages("demo", "index") == ()
    assert stages("demo_baseline", "report") == ("train", "evaluate", "report")
    assert stages("demo_baseline", "caption") == ("caption",)


def test_devices_are_checked_before_the_index_only_where_no_artifact_can_be_found(store, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = ExaminedRecipe(
        build_recipe("demo", ["train.device=cuda", "evaluate.device=cuda:3", "caption.device=cuda"])
    )
    with pytest.raises(
        ConfigError, match=r"(?s)3 problems.*caption.device=cuda.*train.device=cuda.*evaluate.device=cuda:3"
    ):
        check_early(store, recipe, "report")
    with pytest.raises(ConfigError, match=r"^recipe demo: caption.device=cuda: "):
        check_early(store, recipe, "audit")
    for stage in ALL:
        make_artifact(store, stage, {}, lambda folder: (folder / "x").write_bytes(b"1"))
    check_early(store, recipe, "report")
