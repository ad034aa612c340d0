"""Ctrl-C, SIGTERM and SIGKILL during a command on a real terminal: its end, its messages, and its processes.

The waiting times are printed (`pytest -s`); the limits here only distinguish an end from a hang.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.data_trees import settle
from tests.helpers.places import REPO
from tests.helpers.small_runs import FINISHED_RUN

ENDLESS = "train.schedule.epochs=100000"
HANGS = 60.0  # seconds
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

pytestmark = pytest.mark.timeout(900)


class Terminal:
    """A command in the foreground of its own terminal, with its child processes."""

    def __init__(self, home: Path, *words: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.app", *words],
            cwd=REPO,
            env=kept | {"HOME": str(home), "CLIP_SCGI_HOME": str(home), "OMP_NUM_THREADS": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509
        )
        os.close(slave)
        self.written = ""
        self.family: dict[int, psutil.Process] = {}

    def look(self) -> None:
        """Read the output, and remember the child processes."""
        while select.select([self.master], [], [], 0.05)[0]:
            try:
                self.written += _STYLE.sub("", os.read(self.master, 65536).decode(errors="replace"))
            except OSError:  # the other side is closed
                return
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.family[child.pid] = child

    def wait_until(self, what: str, check: Callable[[], object], seconds: float = 400) -> float:
        """Wait until `check` is true, and return the seconds it took."""
        begun = time.monotonic()
        while not check():
            assert time.monotonic() - begun < seconds, f"timed out waiting for {what}:\n{self.written[-3000:]}"
            self.look()
        return time.monotonic() - begun

    def wait_for(self, pattern: str) -> None:
        def shown() -> object:
            assert self.process.poll() is None, f"ended before {pattern}:\n{self.written[-3000:]}"
            return re.search(pattern, self.written)

        self.wait_until(pattern, shown)

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def survivors(self) -> list[psutil.Process]:
        return [child for child in self.family.values() if child.is_running() and child.status() != "zombie"]

    def close(self) -> None:
        for process in [*self.survivors(), psutil.Process(self.process.pid)] if not self.ended() else self.survivors():
            process.kill()
        self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background


@pytest.fixture
def captioned(finished, new_database, tmp_path) -> None:
    """Copy the images and captions of the finished run to `tmp_path`, so that a command trains at once."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("train", "work"))
    new_database(tmp_path)
    settle()


@pytest.fixture
def start(tmp_path):
    """Start a command whose home is `tmp_path`, with settings."""
    begun: list[Terminal] = []

    def starter(*words: str, settings: tuple[str, ...] = ()) -> Terminal:
        chosen = {text.partition("=")[0]: text for text in (*FINISHED_RUN, *settings)}
        changes = [part for text in chosen.values() for part in ("--set", text)]
        begun.append(Terminal(tmp_path, *words, *changes))
        return begun[-1]

    yield starter
    for terminal in begun:
        terminal.close()


def assert_stopped(terminal: Terminal, case: str) -> None:
    """Check that a signaled command prints a line, ends with 130, and leaves neither processes nor a traceback."""
    said = terminal.wait_until("a line about the signal", lambda: "clip-scgi: stopping" in terminal.written, HANGS)
    took = terminal.wait_until("the end", terminal.ended, HANGS)
    terminal.look()
    sys.stdout.write(f"{case}: a line after {said:.1f} s, the end after {said + took:.1f} s\n")
    assert terminal.process.returncode == 130, terminal.written[-3000:]
    assert "Traceback" not in terminal.written
    assert "clip-scgi: interrupted; run the same command again" in terminal.written
    terminal.wait_until("the end of its processes", lambda: not terminal.survivors(), HANGS)


def test_while_the_server_starts(start):
    terminal = start("demo")
    terminal.wait_until("a server", lambda: any("server_process" in " ".join(_words(c)) for c in terminal.survivors()))
    terminal.press_ctrl_c()
    assert_stopped(terminal, "server start-up")


@pytest.mark.usefixtures("captioned")
def test_while_it_trains_and_the_next_run_goes_on(start, tmp_path):
    terminal = start("demo", settings=(ENDLESS, "train.checkpoint_every=5"))
    terminal.wait_for(r"train .*[1-9]\d*/")
    terminal.wait_until("a checkpoint", lambda: terminal.ended() or list((tmp_path / "work" / "train").glob("*/*")))
    terminal.press_ctrl_c()
    assert_stopped(terminal, "training")
    again = start("demo", settings=(ENDLESS, "train.checkpoint_every=5"))
    again.wait_for(r"✓ caption +cached")
    again.wait_for(r"train .*[1-9]\d*/")
    os.kill(again.process.pid, signal.SIGTERM)
    assert_stopped(again, "SIGTERM while it trains")
    assert "epoch 1 " not in again.written, "training started from the beginning"


@pytest.mark.parametrize("runner", [pytest.param("threads", marks=pytest.mark.soak), "processes"])
def test_while_several_workers_caption_and_what_they_made_is_kept(start, tmp_path, runner):
    many = ("synthetic.train_identities=100", "scale.caption_workers=2", f"scale.runner={runner}")
    terminal = start("caption", "demo", settings=many)
    terminal.wait_until("captions", lambda: terminal.ended() or list((tmp_path / "captions").glob("*/part-*.parquet")))
    before = _captions(tmp_path)
    terminal.press_ctrl_c()
    assert_stopped(terminal, f"captioning, two {runner}")
    images = len(list((tmp_path / "datasets").rglob("*.jpg")))
    assert images > 400
    after = _captions(tmp_path)
    assert after > before or after == images, "captions that the workers had not yet written are lost"


@pytest.mark.soak
@pytest.mark.usefixtures("captioned")
def test_while_two_processes_train(start):
    terminal = start("demo", settings=(ENDLESS, "train.batch.identities=4", "scale.train_processes=2"))
    terminal.wait_for(r"train: [1-9]\d*/")
    assert len([child for child in terminal.survivors() if "flows.execution.launch" in _words(child)]) >= 2
    terminal.press_ctrl_c()
    assert_stopped(terminal, "two training processes")


@pytest.mark.soak
def test_a_second_ctrl_c_does_not_wait(start):
    """The main thread may be inside C code that never returns, which only the second Ctrl-C or the limit ends."""
    terminal = start("demo", settings=(ENDLESS,))
    terminal.wait_for(r"train .*[1-9]\d*/")
    terminal.press_ctrl_c()
    time.sleep(1)
    if not terminal.ended():
        terminal.press_ctrl_c()
    took = terminal.wait_until("the end", terminal.ended, HANGS)
    sys.stdout.write(f"second Ctrl-C: the end after {took:.1f} s\n")
    assert terminal.process.returncode == 130
    assert "Traceback" not in terminal.written
    terminal.wait_until("the end of its processes", lambda: not terminal.survivors(), HANGS)


@pytest.mark.usefixtures("captioned")
def test_a_run_that_is_killed_leaves_no_process(start):
    terminal = start("demo", settings=(ENDLESS, "train.batch.identities=4", "scale.train_processes=2"))
    terminal.wait_for(r"train: [1-9]\d*/")
    assert any("flows.execution.server_process" in _words(child) for child in terminal.survivors())
    terminal.process.kill()
    terminal.process.wait()
    took = terminal.wait_until("the end of server and training", lambda: not terminal.survivors(), HANGS)
    sys.stdout.write(f"SIGKILL: the last process ended after {took:.1f} s\n")


STREAMED = """
import os, sys
from flows import interrupts
from flows.execution.child import stream
inner = "import time; print('ready', flush=True); time.sleep(3600)"
outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
with interrupts.watched():
    stream([sys.executable, "-c", outer], os.environ)
"""


def begin(code: str) -> subprocess.Popen[str]:
    """Start Python code that Ctrl-C reaches."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_ctrl_c_ends_a_program_of_the_command_and_its_children():
    """This is how the processes of one training are started: `test_while_two_processes_train` has real ones."""
    process = begin(STREAMED)
    assert process.stderr.readline() == "ready\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert psutil.wait_procs(family, HANGS)[1] == []


HANGING = """
import ctypes, sys, time
from flows.cli import run as commands
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
def hang():
    begun = False
    while True:
        try:
            if not begun:
                begun = True
                print("hanging", flush=True)
            {what}
        except KeyboardInterrupt:
            pass
commands.list_recipes = hang
from flows.cli.app import main
sys.exit(main(["recipes"]))
"""
SWALLOWS = "time.sleep(3600)"
NEVER_RETURNS = "[library.pthread_mutex_lock(mutex) for _ in range(2)]"


def test_a_main_thread_that_does_not_end_is_ended():
    """Test a handler that swallows the interruption, and C code that never returns to Python, at the same time."""
    processes = {what: begin(HANGING.format(what=what)) for what in (SWALLOWS, NEVER_RETURNS)}
    for process in processes.values():
        assert process.stdout.readline() == "hanging\n"
    begun = time.monotonic()
    for process in processes.values():
        process.send_signal(signal.SIGINT)
    for what, process in processes.items():
        assert process.stderr.readline().startswith("clip-scgi: stopping")
        rest = process.stderr.read()
        assert process.wait(HANGS) == 130
        sys.stdout.write(f"{what}: the end after {time.monotonic() - begun:.1f} s\n")
        assert rest.startswith("clip-scgi: interrupted")
        assert "Traceback" not in rest


def test_an_ignored_signal_stays_ignored(tmp_path):
    code = "import signal\nfrom flows import interrupts\nwith interrupts.watched():\n print(signal.getsignal(1).name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.stdout == "SIG_IGN\n"


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _captions(home: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(shard).num_rows for shard in (home / "captions").glob("*/part-*.parquet"))
