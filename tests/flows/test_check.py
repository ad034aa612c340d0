"""`clip-scgi check`: every problem of a broken set-up in one answer, notices of the machine, and what a run costs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file, save_file

from captioning.config import CaptionConfig
from captioning.model_size import model_size
from captioning.prompts.replies import Reply
from captioning.reading import Loaded, Pending
from captioning.stage.probe import measure
from captioning.store.rows import CaptionRow
from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ConfigError, DataError
from data.index.stage import index
from data.stages.stage import RunContext
from flows.cli.app import main
from flows.cli.check import show_costs
from flows.costs.costs import Costs, Duration, StageCost
from flows.preflight.check import notices_of, problems_of
from flows.preflight.disk import weight_bytes
from flows.preflight.finding import texts_of
from flows.preflight.inspection import check_after
from flows.preflight.machine import Load, Memory, Processor, flags_of
from flows.preflight.memory import Need, captioner_size, memory_needs
from flows.preflight.plan import Plan
from flows.recipes import build_recipe
from reid.models.pretrained import TINY_FOLDER, TINY_WEIGHTS
from tests.helpers.chat_server import serving
from tests.helpers.data_trees import market, picture, put
from tests.helpers.gpus import Gpus
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.programs import run_code
from tests.helpers.small_runs import FINISHED_RUN

ALL = ("caption", "train", "evaluate")
GB = 1 << 30


class SetUp(NamedTuple):
    """A broken set-up. settings: of the command, given its folder. wanted: area -> parts of its problems."""

    recipe: str
    settings: Callable[[Path], list[str]]
    wanted: dict[str, list[str]]


def identical(folder: Path) -> Path:
    """Write a dataset in which two people share a file."""
    root = market(folder / "identical")
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").write_bytes(
        (root / "bounding_box_train/0007_c6s4_002202_05.jpg").read_bytes()
    )
    return root


def shared(folder: Path) -> Path:
    """Write a dataset with an identity in training and in the gallery, and without queries."""
    root = market(folder / "shared")
    put(root, "bounding_box_test/0002_c4s1_000451_03.jpg", first_seed=90)
    for query in (root / "query").glob("0*"):
        query.unlink()
    return root


def nan_weights(folder: Path) -> Path:
    """Write the weights of the tiny CLIP with a NaN."""
    tensors = load_file(TINY_FOLDER / TINY_WEIGHTS)
    file = folder / "nan.safetensors"
    save_file(tensors | {"visual.ln_post.bias": np.full_like(tensors["visual.ln_post.bias"], np.nan)}, file)
    return file


def pointer(folder: Path) -> Path:
    file = folder / "pointer.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    return file


def pickled_llava(folder: Path) -> Path:
    llava = folder / "llava"
    llava.mkdir()
    (llava / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (llava / "pytorch_model.bin").write_bytes(b"\x80\2")
    return llava


def manifest_without_columns(folder: Path) -> Path:
    root = folder / "listed"
    root.mkdir()
    (root / "manifest.csv").write_text("file,person\na.jpg,1\n")
    return root


BATCH = "train.batch.identities=16 but the dataset has 2 training identities"
NO_CUDA = "this machine has no usable CUDA device"
SET_UPS = {
    "everything": SetUp(
        "pku_reid",
        lambda folder: [
            "data.root=/nowhere",
            "train.sedule.epochs=3",
            "train.device=cuda",
            f"train.backbone.weights={folder}/absent.safetensors",
            "caption.model=/nowhere/llava",
        ],
        {
            "settings": ["train.sedule.epochs"],
            "data": ["/nowhere"],
            "weights": ["folder /nowhere/llava does not exist", "absent.safetensors does not exist"],
            "device": [f"train.device=cuda: {NO_CUDA}"],
            "disk": ["free"],
        },
    ),
    "no root": SetUp(
        "pku_reid",
        lambda _: ["train.schedule.epochs=0", "train.sie=-1", "caption.device=cuda:7"],
        {
            "settings": ["train.schedule.epochs", "train.sie"],
            "data": ["data.root is empty"],
            "device": [f"caption.device=cuda:7: {NO_CUDA}"],
            "disk": ["free"],
        },
    ),
    "labels that contradict each other": SetUp(
        "demo",
        lambda folder: [f"data.root={identical(folder)}", "train.precision=fp16"],
        {"data": ["identical to an image of another identity"], "sampler": [BATCH], "device": ["fp16 needs a GPU"]},
    ),
    "an identity on both sides": SetUp(
        "demo",
        lambda folder: [f"data.root={shared(folder)}", "train.sie=1"],
        {
            "data": ["set data.split=by_identity", "with query or gallery"],
            "sampler": [BATCH, "train.sie=1 learns one embedding per camera"],
        },
    ),
    "a manifest of other columns": SetUp(
        "demo",
        lambda folder: [
            f"data.root={manifest_without_columns(folder)}",
            "data.reader=manifest",
            f"train.tensorboard={folder}/listed/manifest.csv/logs",
            "evaluate.device=cuda:1",
        ],
        {"data": ["manifest.csv"], "settings": ["train.tensorboard"], "device": [f"evaluate.device=cuda:1: {NO_CUDA}"]},
    ),
    "the wrong reader and a pointer": SetUp(
        "demo_clip_reid",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "data.reader=pku_reid",
            f"train.backbone.weights={pointer(folder)}",
            "train.prompts.words=100",
        ],
        {
            "data": ["_<camera>_<orientation>.png"],
            "weights": ["git lfs pull"],
            "settings": ["train.prompts.words=100 do not fit"],
        },
    ),
    "a silent server": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.engine=openai",
            "caption.model=llava",
            "caption.server.url=http://127.0.0.1:9/v1",
            "train.device=cuda",
        ],
        {
            "server": ["caption.server.url=http://127.0.0.1:9/v1: no usable answer from the server"],
            "sampler": [BATCH],
            "device": [f"train.device=cuda: {NO_CUDA}"],
        },
    ),
    "a key that is not set": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.engine=openai",
            "caption.model=llava",
            "caption.decoding=slots",
            "caption.server.key_variable=NO_SUCH_KEY",
        ],
        {"settings": ["caption.decoding", "key_variable=NO_SUCH_KEY"], "sampler": [BATCH]},
    ),
    "pickles and not a number": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            f"caption.model={pickled_llava(folder)}",
            f"train.backbone.weights={nan_weights(folder)}",
            "caption.temperature=1",
        ],
        {
            "settings": ["caption.temperature"],
            "sampler": [BATCH],
            "weights": ["pytorch_model.bin is pickle", "visual.ln_post.bias"],
        },
    ),
    "processes and a runner": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "train.batch.identities=2",
            "scale.train_processes=3",
            "scale.caption_workers=2",
            "scale.runner=ray",
            "train.validation.every=1",
        ],
        {"settings": ["scale.runner=ray is not installed"], "sampler": ["train.validation.held_out=0.1 leaves 0"]},
    ),
    "an artifact root that is closed": SetUp(
        "demo",
        lambda folder: [
            f"data.root={market(folder / 'market')}",
            "caption.model=nobody/no-such-llava",
            "train.device=cuda",
        ],
        {
            "sampler": [BATCH],
            "weights": ["the weights of nobody/no-such-llava"],
            "device": [f"train.device=cuda: {NO_CUDA}"],
            "disk": ["the artifact root cannot be written"],
        },
    ),
    "nothing to train on": SetUp(
        "demo",
        lambda folder: [f"data.root={folder}/empty", "data.reader=nosuch", "train.batch.identities=1"],
        {"settings": ["data.reader", "train.batch.identities"], "data": ["empty"]},
    ),
}


@pytest.fixture
def broken(tmp_path, monkeypatch, capsys) -> Callable[[str], dict[str, Any]]:
    """Return a function: name of a set-up -> the answer of `check` about it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flows.workers.ray_run.find_spec", lambda name: None)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)

    def answer(name: str) -> dict[str, Any]:
        set_up = SET_UPS[name]
        if "disk" in set_up.wanted:
            monkeypatch.setattr("flows.preflight.disk.free_bytes", lambda _: 100)
        (tmp_path / "file").write_text("")
        home = tmp_path / ("file/home" if "closed" in name else "home")
        settings = [part for text in set_up.settings(tmp_path) for part in ("--set", text)]
        status = main(["check", set_up.recipe, "--home", str(home), "--no-probe", "--json", *settings])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == 1
        assert not found["ready"]
        return found

    return answer


@pytest.mark.parametrize("name", SET_UPS)
def test_all_problems_of_a_broken_set_up_are_printed_at_once(broken, name):
    found: dict[str, list[str]] = {}
    for problem in broken(name)["problems"]:
        found.setdefault(problem["area"], []).append(problem["text"])
    wanted = SET_UPS[name].wanted
    assert found.keys() == wanted.keys(), found
    for area, parts in wanted.items():
        assert len(found[area]) == len(parts), found[area]
        for part in parts:
            assert sum(part in text for text in found[area]) == 1, (part, found[area])
    assert sum(map(len, wanted.values())) >= 2


def test_there_are_ten_broken_set_ups():
    assert len(SET_UPS) >= 10


def test_a_run_prints_the_same_problems_before_a_server_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flows.cli.run.prefect_server", lambda _: pytest.fail("a server was started"))
    home = ["--home", str(tmp_path / "home")]
    settings = ["data.root=/nowhere", "caption.model=/nowhere/llava", "train.device=cuda"]
    told = [part for text in settings for part in ("--set", text)]
    assert main(["check", "demo", *home, "--no-probe", "--json", *told]) == 1
    wanted = [problem["text"] for problem in json.loads(capsys.readouterr().out)["problems"]]
    assert main(["run", "demo", *home, *told]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"clip-scgi: recipe demo: {len(wanted)} problems"
    assert [line.removeprefix("  - ") for line in lines[1:]] == wanted
    assert main(["run", "demo", *home, "--set", "train.sedule.epochs=3", *told]) == 1
    assert f"{len(wanted) + 1} problems" in capsys.readouterr().err


def test_what_else_would_fail_is_raised_with_an_unusable_dataset(tmp_path):
    recipe = build_recipe("demo", [f"data.root={market(tmp_path / 'market')}", "caption.model=/nowhere/llava"])
    store = ArtifactStore(tmp_path / "home")
    with pytest.raises(ConfigError, match=r"(?s)3 problems\n  - the labels.*batch.identities=16.*/nowhere/llava"):
        check_after(store, recipe, "report", DataError("the labels are wrong"))
    fine = build_recipe("demo", [f"data.root={tmp_path / 'market'}", "train.batch.identities=2"])
    check_after(store, fine, "report", DataError("the labels are wrong"))  # nothing to add


def test_an_unknown_recipe_is_one_message(capsys):
    assert main(["check", "dmeo"]) == 1
    assert "did you mean demo" in capsys.readouterr().err


# The machine ----------------------------------------------------------------------------------------------


AVX2 = Processor(flags=frozenset({"avx", "avx2", "fma"}))
MODERN = Processor(flags=frozenset({"avx2", "avx512f", "avx512_bf16"}))


def plan(
    tmp_path: Path,
    *settings: str,
    recipe: str = "demo",
    processor: Processor = MODERN,
    gpus: Gpus | None = None,
    ram: int = 64 * GB,
    stages: tuple[str, ...] = ALL,
) -> Plan:
    built = build_recipe(recipe, settings)
    return Plan(
        run=RunContext(store=ArtifactStore(tmp_path / "home")),
        caption=built.caption,
        train=built.train,
        evaluate=built.evaluate,
        scale=built.scale,
        stages=frozenset(stages),
        cuda=gpus or Gpus(0),
        processor=processor,
        ram=lambda: Memory(ram, ram),
    )


def test_the_flags_of_a_processor():
    x86 = ["processor\t: 0", "flags\t\t: fpu avx2 avx512_bf16", "", "flags\t\t: fpu"]
    assert flags_of(x86) == {"fpu", "avx2", "avx512_bf16"}
    assert flags_of(["Features\t: fp asimd asimdhp bf16"]) == {"fp", "asimd", "asimdhp", "bf16"}
    assert AVX2.emulates("bfloat16")
    assert AVX2.emulates("float16")
    assert not AVX2.emulates("float32")
    assert not MODERN.emulates("bfloat16")
    assert MODERN.emulates("float16")
    assert not Processor().emulates("bfloat16"), "unknown instructions are not reported"


def test_emulated_number_formats_are_notices_with_the_factor(tmp_path):
    settings = ("caption.dtype=bfloat16", "train.precision=bf16", "evaluate.precision=bf16")
    notices = texts_of(notices_of(plan(tmp_path, *settings, processor=AVX2)))
    assert [notice.partition(":")[0] for notice in notices] == [
        "caption.dtype=bfloat16",
        "train.precision=bf16",
        "evaluate.precision=bf16",
    ]
    assert "at least 4.7 times as long as float32: set caption.dtype=float32" in notices[0]
    assert notices[1].endswith("at least 8.5 times as long as float32: set train.precision=no")
    assert texts_of(notices_of(plan(tmp_path, *settings, processor=MODERN))) == []
    assert texts_of(notices_of(plan(tmp_path, *settings, processor=AVX2, stages=()))) == []
    assert texts_of(notices_of(plan(tmp_path, *settings, processor=AVX2, gpus=Gpus(1)))) == []
    assert texts_of(notices_of(plan(tmp_path, processor=AVX2))) == [], "float32 is native everywhere"
    assert texts_of(notices_of(plan(tmp_path, "train.precision=fp16"))) == [], "a problem on every CPU"


def test_a_gpu_without_bf16_instructions(tmp_path):
    old = Gpus(1, bf16=False)
    notices = texts_of(notices_of(plan(tmp_path, "caption.dtype=bfloat16", "train.precision=bf16", gpus=old)))
    assert [notice.rpartition("set ")[2] for notice in notices] == ["caption.dtype=float16", "train.precision=fp16"]


def test_weights_that_do_not_fit_into_the_memory_are_a_problem(tmp_path):
    folder = save_mini_llava(tmp_path / "llava")
    found = model_size(CaptionConfig(model=str(folder), dtype="float32"))
    assert found is not None
    assert found.weights == 4 * found.parameters > 0
    assert found.per_image > 0
    settings = (f"caption.model={folder}", "caption.dtype=float32")
    small = Gpus(1, n_bytes=found.weights - 1)
    (problem,) = texts_of(problems_of(plan(tmp_path, *settings, gpus=small, stages=("caption",))))
    assert problem.startswith(f"the weights of caption.model={folder} take ")
    assert "caption.quantization=4bit" in problem
    room = Gpus(1, n_bytes=found.weights + 3 * found.per_image)
    tight = plan(tmp_path, *settings, gpus=room, stages=("caption",))
    assert problems_of(tight) == []
    (notice,) = texts_of(notices_of(tight))
    assert "set caption.batch_size=3" in notice
    assert notices_of(plan(tmp_path, *settings, gpus=Gpus(1), stages=("caption",))) == []


def test_tokens_of_the_padding_take_no_memory(tmp_path):
    folder = str(save_mini_llava(tmp_path / "llava"))
    every, narrow, square = (
        model_size(CaptionConfig(model=folder, dtype="float32", image_tokens=tokens), squareness=squareness)
        for tokens, squareness in (("all", 0.3), ("body", 0.3), ("body", 1.0))
    )
    assert narrow.per_image < square.per_image == every.per_image
    assert narrow.weights == every.weights


def test_the_most_square_image_decides_how_many_tokens_take_memory(tmp_path):
    folder, root = save_mini_llava(tmp_path / "llava"), tmp_path / "people"
    for number, size in enumerate([(30, 100), (40, 80)]):
        (root / f"{number}").mkdir(parents=True)
        (root / f"{number}" / "a.jpg").write_bytes(picture(number, size=size))
    asked = plan(
        tmp_path, f"caption.model={folder}", "caption.image_tokens=body", "caption.dtype=float32", stages=("caption",)
    )
    store = asked.run.store
    images = index(store, config=DatasetConfig(reader="folders", root=str(root))).images
    known = replace(asked, run=RunContext(store=store, indexed=images))
    expected = model_size(asked.caption, squareness=0.5)
    assert captioner_size(known) == expected != captioner_size(asked) == model_size(asked.caption)


def test_a_busy_machine_is_named_beside_its_speeds():
    def shown(load):
        console = Console(width=80, record=True, file=io.StringIO())
        stage = StageCost(
            stage="caption",
            is_cached=False,
            work="126,441 images, 12,345 already captioned",
            duration=Duration(98_765, "133 images/s in batches of 64, 8 workers"),
            n_bytes=123_456_789,
            memory=Need(
                stage="caption", device="cuda:0", needed=14 * GB, memory=Memory(118 * GB, 128 * GB), is_exact=False
            ),
        )
        show_costs(console, Costs(stages=[stage], to_caption=3, free=GB, load=load))
        return console.export_text()

    busy = shown(Load(8.31, 2))
    assert "busy      speed measured on a busy machine (load average 8.3, 2 cores); an idle machine is faster" in busy
    assert "(load average 8.3, 1 core)" in shown(Load(8.31, 1))
    assert "busy" not in shown(Load(1.5, 2)) + shown(None)
    for number in ("about 15.0 GB", "of 126.7 GB cuda:0", "123.5 MB"):
        assert number in busy, "a number and its unit stand on one line of 80 columns"


def test_quantized_weights_are_smaller(tmp_path):
    folder = str(save_mini_llava(tmp_path / "llava"))
    plain, eight, four = (
        model_size(CaptionConfig(model=folder, dtype="float16", quantization=kind)) for kind in ("none", "8bit", "4bit")
    )
    assert plain is not None
    assert eight is not None
    assert four is not None
    assert plain.weights > eight.weights > four.weights > 0


def test_a_large_captioner_on_a_cpu_is_a_notice(tmp_path):
    asked = plan(tmp_path, recipe="market1501", ram=8 * GB, stages=("caption",))
    notices = texts_of(notices_of(asked))
    assert any("about 14.0 GB of memory for the weights, and this machine has 8.6 GB free" in text for text in notices)
    assert any("7.0 billion parameters and runs on the CPU" in text for text in notices)
    on_gpu = plan(tmp_path, recipe="market1501", gpus=Gpus(1), stages=("caption",))
    assert notices_of(on_gpu) == []


def test_training_that_does_not_fit_is_a_notice(tmp_path):
    settings = ("train.backbone.weights=random", "train.device=cuda")
    small = plan(tmp_path, *settings, recipe="market1501", gpus=Gpus(1, n_bytes=8 * GB), stages=("train",))
    (notice,) = texts_of(notices_of(small))
    assert notice.startswith("train: about 9.")
    assert "train.precision=bf16" in notice


def test_the_frozen_copy_of_a_distillation_takes_memory(tmp_path):
    settings = ("train.backbone.weights=random", "train.device=cuda")
    plans = [
        plan(tmp_path, *settings, *more, recipe="market1501", gpus=Gpus(1), stages=("train",))
        for more in ((), ("train.loss.distill_weight=1",))
    ]
    (plain,), (distilled,) = (memory_needs(one) for one in plans)
    assert distilled.needed - plain.needed == weight_bytes(plans[0].train) > 0


# A server -------------------------------------------------------------------------------------------------


def test_a_server_is_asked_for_its_models(tmp_path):
    def asked(url: str, model: str) -> Plan:
        settings = ("caption.engine=openai", f"caption.model={model}", f"caption.server.url={url}")
        return plan(tmp_path, *settings, stages=("caption",))

    with serving() as server:
        assert notices_of(asked(server.url, server.model)) == []
        (notice,) = texts_of(notices_of(asked(server.url, "another")))
        assert f"lists {server.model}, not caption.model=another" in notice
        (notice,) = texts_of(notices_of(asked(server.url.removesuffix("/v1"), server.model)))
        assert "does not list its models" in notice
        assert "caption.server.url=http://127.0.0.1:8000/v1" in notice
    with serving(models_fault="key_401") as closed:
        (problem,) = texts_of(problems_of(asked(closed.url, closed.model)))
        assert "HTTP 401" in problem


# Costs ----------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the engine below moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowEngine:
    """Captions an image in `each` seconds of a `Clock`, in batches of 8."""

    width = 8

    def __init__(self, clock: Clock, each: float) -> None:
        self.clock, self.each = clock, each

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def rows(self, images: Iterable[Loaded]) -> Iterator[list[CaptionRow]]:
        stream = iter(images)
        while batch := list(islice(stream, self.width)):
            self.clock.now += self.each * len(batch)
            yield [CaptionRow.of(item.sha256, Reply(text="A man.", n_tokens=2, truncated=False)) for item in batch]


@pytest.mark.parametrize(("each", "batch"), [(0.01, 8), (0.5, 8), (2.0, 2), (60.0, 1)])
def test_the_probe_takes_about_its_time_on_any_machine(tmp_path, each, batch):
    put(tmp_path, *(f"{number}.jpg" for number in range(20)))
    images = [
        Pending(sha256=digest_bytes((tmp_path / f"{n}.jpg").read_bytes()), paths=(f"{n}.jpg",)) for n in range(20)
    ]
    clock = Clock()
    engine = SlowEngine(clock, each)
    speed = measure(images, tmp_path, CaptionConfig(), load=lambda _: engine, clock=clock)
    assert speed.per_second == pytest.approx(1 / each)
    assert speed.batch == batch
    assert clock.now <= max(each, 25.0)


def test_costs_of_a_run_that_is_ready(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    root = market(tmp_path / "market")
    home = ["--home", str(tmp_path / "home"), "--set", f"data.root={root}"]
    settings = [*home, "--set", "train.batch.identities=2", "--set", "evaluate.device=cpu"]
    assert main(["check", "demo", *settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"]
    caption, train, evaluate = found["costs"]["stages"]
    assert found["costs"]["images_to_caption"] == 10
    assert caption["work"] == "10 images"
    assert caption["seconds"] > 0
    assert "images/s" in caption["basis"]
    assert caption["memory"]["needed"] > 0
    assert train["seconds"] > 0
    assert evaluate["seconds"] is None
    assert found["costs"]["unmeasured"] == ["evaluate"]
    assert not list((tmp_path / "home" / "captions").glob("*/part-*")), "the captions of the probe are not stored"
    assert main(["check", "demo", *settings, "--no-probe"]) == 0
    shown = capsys.readouterr().out
    assert "demo is ready to run" in shown
    assert "10 images" in shown


def test_images_of_an_unusable_captioner_do_not_count_as_captioned(tmp_path, capsys):
    settings = ["--set", f"data.root={market(tmp_path / 'market')}", "--set", f"caption.model={tmp_path / 'nowhere'}"]
    command = ["check", "demo", "--no-probe", "--home", str(tmp_path / "home"), *settings, "--json"]
    assert main(command) == 1
    costs = json.loads(capsys.readouterr().out)["costs"]
    assert costs["stages"][0]["work"] == "10 images"
    assert costs["images_to_caption"] is None


def test_captions_and_stages_that_exist_cost_nothing(finished, capsys):
    def asked(epochs: int) -> list[str]:
        settings = (*FINISHED_RUN, f"train.schedule.epochs={epochs}")
        chosen = {text.partition("=")[0]: text for text in settings}
        sets = [part for text in chosen.values() for part in ("--set", text)]
        return ["check", "demo", "--home", str(finished[0]), *sets]

    assert main(asked(1)) == 0
    assert capsys.readouterr().out.count("cached") == 3
    assert main([*asked(2), "--no-probe", "--json"]) == 0
    stages = {stage["stage"]: stage["cached"] for stage in json.loads(capsys.readouterr().out)["costs"]["stages"]}
    assert stages == {"caption": True, "train": False, "evaluate": False}


def test_the_fast_part_loads_no_model(tmp_path):
    """Neither transformers nor open_clip is imported, and a backbone file of the user's is judged by its header."""
    settings = (f"data.root={market(tmp_path / 'market')}", f"caption.model={save_mini_llava(tmp_path / 'llava')}")
    command = ["check", "demo", "--no-probe", "--home", str(tmp_path / "home"), "--set", "train.batch.identities=2"]
    command += [part for text in settings for part in ("--set", text)]
    code = (
        "import sys\n"
        "from flows.cli.app import main\n"
        f"status = main({command!r})\n"
        "loaded = {'transformers', 'open_clip', 'bitsandbytes', 'accelerate', 'prefect'} & set(sys.modules)\n"
        "sys.exit(f'status {status}, loaded {sorted(loaded)}' if status or loaded else 0)\n"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stdout + done.stderr


def test_weights_of_the_user_are_judged_without_loading_them(tmp_path, monkeypatch):
    def loaded(*_: object, **__: object) -> None:
        pytest.fail("weights were loaded into a model")

    monkeypatch.setattr("reid.models.backbone.load_clip", loaded)
    monkeypatch.setattr("reid.models.backbone.load_file", loaded)
    file = nan_weights(tmp_path)
    (problem,) = texts_of(problems_of(plan(tmp_path, f"train.backbone.weights={file}", stages=("train",))))
    assert "NaN or infinity in 1 tensor: visual.ln_post.bias" in problem
