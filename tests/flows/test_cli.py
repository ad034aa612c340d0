"""The command line as a whole."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command

from data.artifacts.store import ArtifactStore
from data.files import write_json
from flows.cli import artifacts as commands_artifacts
from flows.cli import results
from flows.cli import run as commands
from flows.cli.app import main
from flows.cli.commands import StudyGroup, app
from flows.study.plan import GROUPS, PRESETS
from flows.summary import RunSummary, StageRun
from tests.helpers.data_trees import put
from tests.helpers.places import REPO
from tests.helpers.stages import make_artifact


def plain(text: str) -> str:
    """Return `text` without the colors that Typer writes where GITHUB_ACTIONS or FORCE_COLOR is set."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"clip-scgi {version('clip-scgi')}\n"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "change its permissions, or name a folder of your own"),
        (errno.EACCES, "change its permissions, or name a folder of your own"),
        (errno.ENOSPC, "free some space and run the same command again; finished work is kept"),
        (errno.ENOTDIR, "this path needs a folder where a file exists"),
    ],
)
@pytest.mark.parametrize("name", ["/data/locks/a", None])
def test_an_error_of_the_file_system_is_one_message(monkeypatch, capsys, number, remedy, name):
    def fail() -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(commands, "list_recipes", fail)
    assert main(["recipes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    where = f"{name}: " if name else ""
    assert line.startswith(f"clip-scgi: {where}{os.strerror(number)}; {remedy}")


@pytest.mark.parametrize(
    "command",
    [
        ["check", "demo", "--no-probe"],
        ["embed", "demo"],
        ["artifacts", "ls"],
        ["manifest", "people"],
        ["study", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_home_that_cannot_exist_is_one_message(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "people/anna/1.jpg")
    Path("loop").symlink_to("loop")
    for home, reason in (
        ("h" * 300, "cannot be used (File name too long)"),
        ("~nobody-here/x", "cannot be used (Could not determine home directory)"),
        ("loop", "cannot be used (Symlink loop from"),
    ):
        assert main([*command, "--home", home]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"clip-scgi: the artifact root {home} {reason}")
        assert line.endswith("set --home or CLIP_SCGI_HOME to a folder of your own")


@pytest.mark.parametrize("command", [["manifest", "people"], ["study", "--dry-run"]], ids=" ".join)
def test_a_file_system_without_folders_is_one_message(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "people/anna/1.jpg")
    assert main([*command, "--home", "/proc/x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "clip-scgi: the artifact root /proc/x cannot be created (No such file or directory): set --home or "
        "CLIP_SCGI_HOME to a folder of your own"
    )
    assert main(["check", "demo", "--no-probe", "--home", "/proc/x"]) == 1
    printed = capsys.readouterr()
    assert "the artifact root /proc/x cannot be created" in " ".join(printed.out.split())
    assert "Traceback" not in printed.err


def test_an_error_without_a_remedy_keeps_its_traceback(monkeypatch):
    def fail() -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(commands, "list_recipes", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["recipes"])


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["ls"], "list_artifacts"),
        (["show", "x"], "show_artifact"),
        (["verify"], "verify_artifacts"),
        (["gc"], "collect_garbage"),
    ],
)
def test_home_may_stand_before_and_behind_the_verb_of_artifacts(monkeypatch, words, action):
    given = []

    def note(home: Path | None, *_, **__) -> int:
        given.append(home)
        return 0

    monkeypatch.setattr(commands_artifacts, action, note)
    for before, behind in [((), ()), (("/a",), ()), ((), ("/b",)), (("/a",), ("/b",))]:
        options = [[part for place in places for part in ("--home", place)] for places in (before, behind)]
        assert main(["artifacts", *options[0], *words, *options[1]]) == 0
    assert given == [None, Path("/a"), Path("/b"), Path("/b")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs"], "No such command 'runs'"),
        (["run", "demo", "--untl", "train"], "No such option"),
        (["run", "demo", "--until", "trian"], "Invalid value for '--until'"),
        (["run", "demo", "extra"], "unexpected extra argument"),
        (["recipes", "x"], "unexpected extra argument"),
        (["search", "demo", "--top", "0"], "Invalid value for '--top'"),
        (["study", "--groups", "rest"], "Invalid value for '--groups'"),
        (["artifacts", "gc", "--keep", "-1"], "Invalid value for '--keep'"),
        (["artifacts", "gc", "--days", "-1"], "must be 0 or more"),
        (["artifacts", "gc", "--days", "nan"], "must be 0 or more"),
        (["artifacts", "gc", "--days", "inf"], "must be 0 or more"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(capsys, words, told):
    assert main(words) == 2
    error = " ".join(plain(capsys.readouterr().err).replace("│", " ").split())
    assert error.startswith(f"Usage: clip-scgi{' artifacts gc' if 'gc' in words else ''}")
    assert told.lower() in error.lower()


@pytest.mark.parametrize("words", [[], ["run"], ["train"], ["search"], ["sheet"], ["show"], ["deploy"], ["artifacts"]])
def test_without_arguments_a_command_shows_its_help(capsys, words):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert " ".join(["Usage: clip-scgi", *words]) in plain(captured.out + captured.err)


def _commands(group, *path: str):
    """Yield the words and the command of every command below `group`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield [*path, name], command


ALL_COMMANDS = {" ".join(words): command for words, command in _commands(get_command(app))}


def test_there_are_commands():
    stages = {"run", "caption", "audit", "train", "evaluate", "report"}
    looking = {"check", "show", "recipes", "sheet", "search", "embed", "explain", "study", "ui", "compare", "export"}
    artifacts = {f"artifacts {verb}" for verb in ("gc", "ls", "show", "verify")}
    galleries = {f"gallery {verb}" for verb in ("add", "info", "remove", "search")}
    corrections = {f"corrections {verb}" for verb in ("export", "import", "info", "log")}
    papers = {f"paper {verb}" for verb in ("ablation", "captions", "sweep", "top10")}
    others = {"demo", "manifest", "deploy", "serve"}
    assert set(ALL_COMMANDS) == {*stages, *looking, *artifacts, *galleries, *corrections, *papers, *others}


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_each_command_has_an_example_that_parses(name):
    examples = re.findall(r"clip-scgi .*", ALL_COMMANDS[name].help)
    assert examples
    for example in examples:
        assert len(example) < 75, "it would be wrapped at 80 columns"
        words = shlex.split(example.partition("clip-scgi ")[2])
        assert words[: len(name.split())] == name.split()
        ALL_COMMANDS[name].make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["", "artifacts", *ALL_COMMANDS])
def test_help_fits_the_terminal(monkeypatch, capsys, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*name.split(), "--help"]) == 0
    lines = plain(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    if name in ALL_COMMANDS:
        for example in re.findall(r"clip-scgi .*", ALL_COMMANDS[name].help):
            assert any(example in line for line in lines), "an example can be copied"


def test_the_choices_of_a_study_are_those_of_its_plan():
    assert tuple(group.value for group in StudyGroup) == GROUPS
    (preset,) = (option for option in ALL_COMMANDS["study"].params if option.name == "preset")
    assert preset.default in PRESETS
    for name in PRESETS:
        ALL_COMMANDS["study"].make_context("study", ["--preset", name])


@pytest.mark.parametrize("text", ["[red]x[/]", "[/]", "[bold", ":car:"])
def test_text_of_the_user_is_not_read_as_markup(capsys, text):
    assert main([text]) == 2
    assert f"'{text}'" in plain(capsys.readouterr().err)
    assert main(["run", text]) == 1
    assert f"recipe '{text}' does not exist" in capsys.readouterr().err
    assert main(["show", "demo", "--set", f"data.name={text}"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["name"] == text


def test_show_explains_a_setting_and_a_group(capsys):
    assert main(["show", "demo", "--explain", "train.scgi.contrast_text"]) == 0
    head, text = capsys.readouterr().out.split("\n", 1)
    assert head == 'train.scgi.contrast_text = "composed"'
    assert " ".join(text.split()).startswith("Text side of L_con: the composed prompt (paper and port)")
    assert " ".join(text.split()).endswith('One of "composed", "caption", "both".')
    assert main(["show", "demo", "--explain", "train.scgi", "--set", "train.scgi.depth=3"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert "train.scgi.depth = 3" in heads
    assert all(line.startswith("train.scgi.") for line in heads)
    assert main(["show", "folders", "--explain", "synthetic.clothes"]) == 0, "the recipe draws nobody"
    assert capsys.readouterr().out.startswith("synthetic.clothes = null\n    Each person has clothes outfits")
    assert main(["show", "demo", "--explain", "scgi.dpeth"]) == 1
    assert "--explain scgi.dpeth: no such setting; did you mean train.scgi.depth?" in capsys.readouterr().err


def test_the_old_key_of_a_renamed_setting_works_with_one_notice(capsys):
    settings = [
        part for text in ("train.schedule.rate_clip=0.5", 'train.scgi={"queries":3}') for part in ("--set", text)
    ]
    notices = [
        "! setting 'train.schedule.rate_clip' is now 'train.schedule.lr_clip'",
        "! setting 'train.scgi.queries' is now 'train.scgi.inversion_tokens'",
    ]
    assert main(["show", "demo", *settings]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == notices
    train = json.loads(captured.out)["train"]
    assert (train["schedule"]["lr_clip"], train["scgi"]["inversion_tokens"]) == (0.5, 3)
    assert main(["show", "demo", *settings]) == 0
    assert capsys.readouterr().err == "", "each notice is printed once"


@pytest.mark.parametrize("words", [["demo"], ["run", "demo"], ["train", "demo"]])
def test_two_frames_lie_between_the_shell_and_the_flow(monkeypatch, tmp_path, words):
    own: list[str] = []

    def flow(**_):
        frame = sys._getframe(1)
        while frame.f_code.co_name != "test_two_frames_lie_between_the_shell_and_the_flow":
            if frame.f_code.co_filename.startswith(str(REPO / "flows")):
                own.append(frame.f_code.co_name)
            frame = frame.f_back

    monkeypatch.setattr(commands, "flow_of", lambda *_: nullcontext(flow))
    monkeypatch.setattr(results, "show_results", lambda _: None)
    assert main([*words, "--home", str(tmp_path)]) == 0
    assert own in (["demo", "main"], ["run", "main"], ["command", "main"])


def test_a_shell_completes_commands_options_and_recipes():
    def complete(line: str) -> set[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        environment = {**os.environ, "_CLIP_SCGI_COMPLETE": "complete_bash", **words}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.app"],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return set(done.stdout.split())

    assert complete("clip-scgi re") == {"report", "recipes"}
    assert complete("clip-scgi run msmt17_cl") == {
        "msmt17_clip_reid",
        "msmt17_clip_reid_rn50",
        "msmt17_clip_reid_sie_olp",
    }
    assert complete("clip-scgi run demo --un") == {"--until"}


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("people.gif", "the name must end in .png or .jpg or .jpeg, such as --out {at}/people.png"),
        ("people", "the name must end in .png or .jpg or .jpeg, such as --out {at}/people.png"),
        ("folder.png", "is a folder: give the name of a file"),
        ("file/people.png", "cannot be written: give a path in a folder of your own"),
    ],
)
def test_the_path_of_a_sheet_is_checked_before_captioning(monkeypatch, tmp_path, capsys, out, problem):
    monkeypatch.setattr(commands, "flow_of", lambda *_: pytest.fail("a stage has started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert main(["sheet", "demo", "--home", str(tmp_path / "home"), "--out", str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clip-scgi: --out {tmp_path / out}")
    assert problem.format(at=tmp_path) in line
    assert not (tmp_path / "home").exists()


def test_the_path_of_a_study_is_checked_before_drawing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["study", "--home", str(tmp_path / "home"), "--out", str(tmp_path / "file" / "study")]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clip-scgi: --out {tmp_path}/file/study cannot be written")
    assert not (tmp_path / "home").exists()


def _captioned(root: Path, captions: list[str]) -> RunSummary:
    """Return the summary of a run that indexed and captioned into the artifact root `root`."""
    store = ArtifactStore(root)

    def tell(folder: Path) -> None:
        paths = [f"{n}.png" for n in range(len(captions))]
        pd.DataFrame({"image_path": paths, "caption": captions}).to_parquet(folder / "captions.parquet")

    made = {
        "index": make_artifact(store, "index", {}, lambda folder: write_json(folder / "dataset.json", {"rejected": 0})),
        "caption": make_artifact(store, "caption", {}, tell),
    }
    stages = [
        StageRun(stage=name, status="ran", seconds=1.0, note="", ref=outcome.ref.to_json())  # type: ignore[arg-type]
        for name, outcome in made.items()
    ]
    return RunSummary(recipe="demo", stages=stages)


@pytest.mark.parametrize("folder", ["home", 'hö me\'s "own"'])
def test_the_command_to_look_at_captions_shows_them_whole(tmp_path, folder):
    long = "A young woman with long brown hair is wearing a red shirt, blue jeans and white shoes, and carries a bag."
    places = dict(results._places(_captioned(tmp_path / folder, [long, "A man."])))
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
    monkeypatch.setattr(results.shutil, "which", lambda name: {"python": where}[name])
    assert results.python_command() == {"python": "python", "path": shlex.quote(str(own))}[expected]


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


def test_signals_are_handled_before_slow_imports():
    """Ctrl-C before `main` shows Python's traceback, so importing the command line must be quick."""
    code = "import sys, flows.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    slow = {"psutil", "importlib.metadata", "pydantic", "numpy", "pyarrow", "torch", "prefect", "rich", "httpx"}
    assert not slow & set(loaded.stdout.split())


def test_help_loads_nothing_heavy():
    code = "import sys; from flows.cli.app import main; main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    heavy = {"numpy", "pandas", "pyarrow", "torch", "prefect", "transformers", "httpx", "numba", "PIL"}
    assert not heavy & set(loaded.stdout.split())
