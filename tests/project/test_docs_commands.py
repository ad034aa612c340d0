"""The commands of the README, and of the pages that a newcomer follows next, are run here or by `.ci/run`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from huggingface_hub import constants

from data.artifacts.fingerprint import digest_file
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.schemas import CAPTIONS
from data.synthetic.world import WorldConfig, write_market1501
from flows.cli.app import main
from reid.training.stage import TrainStage
from tests.helpers.places import REPO
from tests.helpers.programs import CLIP_SCGI, run_module
from tests.helpers.shards import put_shard
from tests.helpers.small_models import write_model
from tests.helpers.small_runs import FINISHED_RUN, ON_CPU, SMALL_WORLD

PAGES = ("README.md", "docs/your_data.md", "docs/search.md", "docs/export.md", "docs/gpu.md", "docs/paper.md")
TEXTS = {page: (REPO / page).read_text(encoding="utf-8") for page in PAGES}
BLOCKS = {page: re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for page, text in TEXTS.items()}
COMMANDS = {page: [line.strip() for block in blocks for line in block.splitlines()] for page, blocks in BLOCKS.items()}
IN_CI = {line.split("#")[0].strip() for line in (REPO / ".ci/run").read_text().splitlines()}
STAGES = ("check", "run", "caption", "audit", "train", "evaluate", "report")
RUNNABLE = list(
    dict.fromkeys(
        command
        for commands in COMMANDS.values()
        for command in commands
        if command.startswith("clip-scgi") and command.split()[1] not in ("artifacts", "gallery", "paper")
    )
)
NEEDS_WEIGHTS = ("market1501", "manifest", "manifest_clip_reid", "cuhk_pedes", "rstpreid")
IN_A_PROCESS = (
    "clip-scgi manifest /data/people --output people.csv",
    "clip-scgi export demo -o exported --format open_clip",
)
UNTRAINED = [part for text in (*FINISHED_RUN, "train.seed=2") for part in ("--set", text)]
"""The finished run with another seed: it has captions, and the first command that needs its model trains it."""
WRITTEN = ("people.csv", "maps.png", "features.parquet", "exported")

pytestmark = pytest.mark.xdist_group("flow")


class Ended(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


def run(arguments: list[str], *, in_a_process: bool = False) -> Ended:
    """Run a command here or in a process of its own."""
    if in_a_process:
        done = run_module(CLIP_SCGI, *arguments, environment=os.environ, timeout=280)
        return Ended(done.returncode, done.stdout, done.stderr)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main(arguments)
    return Ended(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shared(finished, module_folder):
    """Copy the finished run to an artifact root of several commands: what one of them makes, the next finds."""
    return shutil.copytree(finished[0], module_folder("shared") / "home")


@pytest.fixture(scope="module")
def one_model(module_folder):
    """Make an artifact root with one model, because `--model demo` must not name two."""
    store = ArtifactStore(module_folder("one_model") / "home")
    store.record_use(write_model(store), dataset="demo", recipe="demo")
    return store.root


@pytest.fixture
def home(request, monkeypatch):
    """Use one of the two artifact roots, whichever the command needs."""
    command = request.getfixturevalue("command")
    home = request.getfixturevalue("one_model" if command.split()[1] in ("embed", "export") else "shared")
    monkeypatch.setenv("CLIP_SCGI_HOME", str(home))


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """Keep this process away from the hub and from its downloads."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def people(module_folder):
    """Write small generated datasets in place of the folders that the pages name."""
    root = module_folder("people")
    world = WorldConfig(seed=3, train_identities=6, test_identities=4, cameras=2, images_per_camera=2)
    market = write_market1501(root / "Market-1501-v15.09.15", world)
    pku = root / "PKU-Reid"
    pku.mkdir()
    for path in sorted(market.glob("*/*.jpg")):
        pid, camera = re.match(r"(\d+)_c(\d)", path.name).groups()
        free = next(n for n in range(1, 99) if not (pku / f"{pid}_0{camera}_{n}.png").exists())
        (pku / f"{pid}_0{camera}_{free}.png").write_bytes(path.read_bytes())
    mine, crops = root / "my-people", root / "crops"
    mine.mkdir()
    crops.mkdir()
    rows = []
    for folder, split in (("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")):
        for path in sorted((market / folder).glob("*.jpg")):
            pid, camera = re.match(r"(\d+)_c(\d)", path.name).groups()
            person = root / "people" / f"person {pid}"
            person.mkdir(parents=True, exist_ok=True)
            for folder_of_copy in (mine, crops, person):
                (folder_of_copy / path.name).write_bytes(path.read_bytes())
            rows.append({"path": path.name, "split": split, "pid": int(pid), "camid": int(camera)})
    pd.DataFrame(rows).to_csv(mine / "manifest.csv", index=False)
    for split in ("train", "query", "gallery"):
        samples = (_sample(mine, row) for row in rows if row["split"] == split)
        put_shard(root / "shards", f"{split}-000000.tar", *samples)
    _write_cuhk_pedes(root / "CUHK-PEDES", mine, rows)
    return root


def _sample(images, row):
    labels = json.dumps({"pid": row["pid"], "camid": row["camid"]}).encode()
    stem = Path(row["path"]).stem
    return {f"{stem}.jpg": (images / row["path"]).read_bytes(), f"{stem}.json": labels}


def _write_cuhk_pedes(root, images, rows):
    (root / "imgs").mkdir(parents=True)
    entries = []
    for row in rows:
        (root / "imgs" / row["path"]).write_bytes((images / row["path"]).read_bytes())
        split = "train" if row["split"] == "train" else "test"
        words = f"A person with the number {row['pid']} walks."
        entries.append({"split": split, "captions": [words], "file_path": row["path"], "id": row["pid"]})
    (root / "reid_raw.json").write_text(json.dumps(entries))


def test_every_command_of_the_readme_is_run_here_or_in_ci():
    elsewhere = [command for command in COMMANDS["README.md"] if command not in RUNNABLE and command not in IN_CI]
    assert elsewhere == ["source .venv/bin/activate"]
    assert len(RUNNABLE) >= 10


def completed(command: str, people: Path, folder: Path) -> list[str]:
    """Return the arguments of a command, with paths that exist, and small."""
    arguments = [re.sub("/data/|s3://bucket/", f"{people}/", word) for word in shlex.split(command)[1:]]
    arguments = [str(folder / word) if word in WRITTEN else word for word in arguments]
    verb = arguments[0]
    if verb == "run":
        return [*arguments, "--set", "train.schedule.epochs=1", "--set", "train.batch.identities=3"]
    if verb == "embed" and "-o" not in arguments:
        return [*arguments, "-o", str(folder / "features.parquet")]
    if verb in ("search", "explain"):
        query = next((people / "Market-1501-v15.09.15" / "query").glob("*.jpg"))
        arguments = [str(query) if word in ("query.jpg", "gallery.jpg") else word for word in arguments]
        return [*arguments, *UNTRAINED, *(["--train"] if verb == "search" else [])]
    return arguments


@pytest.mark.usefixtures("home", "no_hub")
@pytest.mark.parametrize("command", RUNNABLE)
def test_the_command_works(command, people, tmp_path):
    """Run it in this process; those of `IN_A_PROCESS`, as a person starts them."""
    arguments = completed(command, people, tmp_path)
    verb = arguments[0]
    if verb == "explain":
        assert main(["train", "demo", *UNTRAINED]) == 0
    status, out, err = run(arguments, in_a_process=command in IN_A_PROCESS)
    if verb in STAGES and arguments[1] in NEEDS_WEIGHTS:
        # The weights do not exist here and no hub can be reached: one clear message, no traceback.
        assert status == 1
        assert re.search(r"llava-1\.5-7b-hf|clip_224\.openai", out + err)
        assert "Traceback" not in err
        return
    assert status == 0, err[-3000:]
    if verb in ("search", "explain"):
        assert "similarity" in out
    if verb == "embed":
        assert (tmp_path / "features.parquet").exists()
    if verb == "export":
        assert "largest difference" in out
        assert (tmp_path / "exported/README.md").exists()
    if verb == "run":
        assert "report.html" in out
        assert "mAP" in out


def test_the_artifact_commands_work(shared, monkeypatch):
    monkeypatch.setenv("CLIP_SCGI_HOME", str(shared))
    commands = [line for line in COMMANDS["docs/search.md"] if line.startswith("clip-scgi artifacts")]
    assert len(commands) >= 4
    for command in commands:
        if "FINGERPRINT" not in command:
            status, _, err = run(shlex.split(command)[1:])
            assert status == 0, err


def test_the_gallery_commands_work_one_after_the_other(people, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "home"))
    store = ArtifactStore(tmp_path / "home")
    store.record_use(write_model(store), dataset="demo", recipe="demo")
    images = list((people / "Market-1501-v15.09.15").glob("*/*.jpg"))
    shutil.copyfile(images[0], "query.jpg")
    notes = [{"image_sha256": digest_file(path), "caption": "A man.", "attr_upper_color": "red"} for path in images]
    pd.DataFrame(notes).reindex(columns=CAPTIONS.names).to_parquet("captions.parquet")
    on_cpu = ["--set", "evaluate.device=cpu"]
    manifest = str(people / "my-people" / "manifest.csv")
    assert main(["embed", manifest, "--model", "demo", "--mode", "joint", *on_cpu]) == 0
    small = [part for text in (*SMALL_WORLD, "evaluate.device=cpu") for part in ("--set", text)]
    commands = [command for command in COMMANDS["docs/search.md"] if command.startswith("clip-scgi gallery")]
    assert len(commands) >= 8
    for command in commands:
        words = [word.replace("/data/", f"{people}/") for word in shlex.split(command)[1:]]
        words += {"add": small if "demo" in words[3:4] else on_cpu, "search": on_cpu}.get(words[1], [])
        assert main(words) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert re.search(r"images +[1-9]\d* \(", shown)
    assert "images pass the filter and were compared" in shown
    assert re.search(r"[1-9]\d* images removed", shown) or "did you mean" in shown
    assert "<img" in (tmp_path / "hits.html").read_text(encoding="utf-8")


SMALL_STUDY = [*SMALL_WORLD, *ON_CPU, "train.schedule.epochs=1", "train.schedule.warmup_epochs=0",
               "train.schedule.milestones=[]", "train.batch.identities=3"]  # fmt: skip
ONE_SEED = ["--seeds", "1", *(part for setting in SMALL_STUDY for part in ("--set", setting))]


def stand_in_for_the_demo(store: ArtifactStore) -> None:
    """Let the evaluations and captions of `store` be those of the recipe demo."""
    for stage in ("evaluate", "caption"):
        for made in store.sidecars(stage):
            ref = ArtifactRef(stage=stage, fingerprint=made.fingerprint, content="", path=str(made.folder))
            store.record_use(ref, dataset="demo", recipe="demo")


def test_the_paper_commands_train_nothing_twice(people, tmp_path, monkeypatch, capsys):
    """Run them one after the other in one artifact root, with few people and one seed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "home"))
    trained, real = [], TrainStage.produce
    monkeypatch.setattr(TrainStage, "produce", lambda stage, *place: trained.append(stage) or real(stage, *place))
    shown = []
    for command in COMMANDS["docs/paper.md"]:
        words = [word.replace("/data/", f"{people}/") for word in shlex.split(command)[1:]]
        if "market1501" in words:
            assert main(words) == 1
            assert "clip_224.openai" in capsys.readouterr().err, "the weights do not exist here"
            continue
        if words[1] in ("top10", "captions"):
            stand_in_for_the_demo(ArtifactStore(tmp_path / "home"))
        else:
            words += ONE_SEED
        assert main(words) == 0, capsys.readouterr().err
        shown.append(capsys.readouterr().out)
    assert len(shown) >= 6
    assert len(trained) == 4 + 3, "K = 2 is CLIP-SCGI of the ablation, and dry runs train nothing"
    assert {path.name for path in (tmp_path / "runs/paper").iterdir()} == {
        *("ablation.html", "ablation.md", "ablation.csv", "queries.svg", "queries.png", "sweep.csv"),
        *("top10.html", "top10.png", "captions.html", "captions.png"),
    }
    follow = re.search(r"^top ten   clip-scgi (paper top10 .*)$", shown[1], re.MULTILINE)[1]
    assert main(shlex.split(follow)) == 0
    assert main(["paper", "ablation", *ONE_SEED]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert len(trained) == 7


def test_the_listed_recipes_command():
    status, out, _ = run(["recipes"], in_a_process=True)
    assert status == 0
    assert "market1501" in out
