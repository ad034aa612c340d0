"""The command line as a whole."""

import errno
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from data.artifacts.store import ArtifactStore
from data.files import write_json
from flows.cli import run as commands
from flows.cli.app import main, parse
from flows.summary import RunSummary, StageRun
from tests.helpers.places import REPO


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"clip-scgi {version('clip-scgi')}\n"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "give it other permissions, or name a folder of your own"),
        (errno.EACCES, "give it other permissions, or name a folder of your own"),
        (errno.ENOSPC, "free some space and run the same command again; what is finished is kept"),
        (errno.ENOTDIR, "a file stands where a folder is wanted"),
    ],
)
@pytest.mark.parametrize("name", ["/data/locks/a", None])
def test_an_error_of_the_file_system_is_one_message(monkeypatch, capsys, number, remedy, name):
    def fail() -> int:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(commands, "list_recipes", fail)
    assert main(["recipes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    where = f"{name}: " if name else ""
    assert line.startswith(f"clip-scgi: {where}{os.strerror(number)}; {remedy}")


def test_an_error_that_nobody_can_act_on_keeps_its_traceback(monkeypatch):
    def fail() -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(commands, "list_recipes", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["recipes"])


@pytest.mark.parametrize("words", [["ls"], ["show", "x"], ["verify"], ["gc"]])
def test_home_may_stand_before_and_behind_the_verb_of_artifacts(words):
    assert parse(["artifacts", *words]).home is None
    assert parse(["artifacts", "--home", "/a", *words]).home == Path("/a")
    assert parse(["artifacts", *words, "--home", "/b"]).home == Path("/b")
    assert parse(["artifacts", "--home", "/a", *words, "--home", "/b"]).home == Path("/b")


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("people.gif", "the name must end in .png or .jpg or .jpeg, such as --out {at}/people.png"),
        ("people", "the name must end in .png or .jpg or .jpeg, such as --out {at}/people.png"),
        ("folder.png", "is a folder: give the name of a file"),
        ("file/people.png", "cannot be written: give a path in a folder of your own"),
    ],
)
def test_where_a_sheet_goes_is_checked_before_anything_is_captioned(monkeypatch, tmp_path, capsys, out, problem):
    monkeypatch.setattr(commands, "_run", lambda *_, **__: pytest.fail("the stages have begun"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert main(["sheet", "demo", "--home", str(tmp_path / "home"), "--out", str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clip-scgi: --out {tmp_path / out}")
    assert problem.format(at=tmp_path) in line
    assert not (tmp_path / "home").exists()


def test_where_a_study_goes_is_checked_before_anything_is_drawn(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["study", "--home", str(tmp_path / "home"), "--out", str(tmp_path / "file" / "study")]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clip-scgi: --out {tmp_path}/file/study cannot be written")
    assert not (tmp_path / "home").exists()


def _captioned(root: Path, captions: list[str]) -> RunSummary:
    """Return a run that has indexed and captioned, into the artifact root `root`."""
    store = ArtifactStore(root)

    def tell(folder: Path) -> None:
        paths = [f"{n}.png" for n in range(len(captions))]
        pd.DataFrame({"image_path": paths, "caption": captions}).to_parquet(folder / "captions.parquet")

    made = {
        "index": store.make("index", {}, lambda folder: write_json(folder / "dataset.json", {"rejected": 0})),
        "caption": store.make("caption", {}, tell),
    }
    stages = [
        StageRun(stage=name, status="ran", seconds=1.0, note="", ref=outcome.ref.to_json())  # type: ignore[arg-type]
        for name, outcome in made.items()
    ]
    return RunSummary(recipe="demo", stages=stages)


@pytest.mark.parametrize("folder", ["home", 'hö me\'s "own"'])
def test_the_command_to_look_at_captions_shows_them_whole(tmp_path, folder):
    long = "A young woman with long brown hair is wearing a red shirt, blue jeans and white shoes, and carries a bag."
    places = dict(commands._places(_captioned(tmp_path / folder, [long, "A man."])))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        places["look"], shell=True, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image_path", "caption"]
    assert lines[1].split(maxsplit=2) == ["0", "0.png", long]
    assert len(lines) == 3


@pytest.mark.parametrize(("found", "expected"), [("same", "python"), ("other", "path"), (None, "path")])
def test_the_commands_name_the_interpreter_that_has_the_packages(monkeypatch, tmp_path, found, expected):
    own = tmp_path / "my venv" / "bin" / "python"
    where = {"same": str(own), "other": "/usr/bin/python", None: None}[found]
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setattr(commands.shutil, "which", lambda name: {"python": where}[name])
    assert commands.python_command() == {"python": "python", "path": shlex.quote(str(own))}[expected]


def test_settings_are_shown_as_json(capsys):
    assert main(["show", "demo", "--set", "caption.model=/models/llava"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"]["model"] == "/models/llava"


def test_output_on_a_full_disk_is_one_message():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "flows.cli.app", "recipes"]
        done = subprocess.run(command, cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("clip-scgi: No space left on device; free some space")


def test_a_signal_is_watched_for_before_slow_imports():
    """Ctrl-C before `main` is Python's own traceback, so importing the command line must be quick."""
    code = "import sys, flows.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    slow = {"psutil", "importlib.metadata", "pydantic", "numpy", "pyarrow", "torch", "prefect", "rich", "httpx"}
    assert not slow & set(loaded.stdout.split())
