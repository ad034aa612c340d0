"""Fixtures of all tests: a home of its own per test, one thread of torch, Prefect's test server, and one finished run.

With `--dist loadfile`, the tests of a file run in one process, which makes their fixtures once. Groups only set the
order: pytest-xdist 3.8 does not pass them on with pytest 9.2 (`--dist loadgroup`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.helpers.scratch import too_much

if TYPE_CHECKING:
    from flows.summary import RunSummary

# Time limits of hypothesis, which a busy machine would exceed.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
# For `make mutants`: the first failure of a property counts, so no smaller example is searched for.
settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))

LONGEST_FIRST: Final = (
    "flow",
    "flows/test_interrupt",
    "flows/test_server",
    "captioning/test_families",
    "reid/test_export",
    "data/test_environment",
    "captioning/test_image_tokens",
    "captioning/test_decoding",
    "tools/test_tiny_llava",
    "reid/test_trainer",
    "reid/test_joint_space",
    "reid/test_parity",
    "flows/test_embed",
    "reid/test_validation",
    "reid/test_tracking",
)
"""Groups that take longer than fifteen seconds: at the end, the other process would wait for them."""

SCRATCH = pytest.StashKey[Path]()
"""The folder for temporary files of all processes of this run."""


def pytest_configure(config: pytest.Config) -> None:
    """Collect the temporary files of the tests, and of the programs that they start or kill, in one folder.

    It is removed when this process ends; pytest keeps its own folders elsewhere, for tests that failed.
    """
    if hasattr(config, "workerinput"):
        return  # a process of pytest-xdist has the environment of the one that started it
    root = os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="tests-", dir=root)  # short: paths of sockets may have a hundred characters
    # After multiprocessing has removed its own folders in it (-100).
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    Path(folder).chmod(0o711)  # other users, such as that of PostgreSQL, reach the folders in it that are open to them
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/torch"  # set already if another conftest.py imported torch
    config.stash[SCRATCH] = Path(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every program that a test starts would compile the project
    # More would be processes that each import torch, beside the two that test.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest removes the folders of a run that passed
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that passed but filled the disk: tests must leave room for those that follow."""
    scratch = session.config.stash.get(SCRATCH, None)
    if scratch is None or exitstatus:  # a process of pytest-xdist, or a failure, whose folder is kept
        return
    entries = session.config._tmp_path_factory.getbasetemp().iterdir()  # of a test, or of a process of pytest-xdist
    lines = too_much([scratch, *(path for path in entries if path.is_dir() and not path.is_symlink())])
    if lines:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().write("\n" + "\n".join(lines) + "\n", red=True)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that use Prefect's server, and the other tests of each file, and order the groups."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_place)


def _group(item: pytest.Item) -> str:
    if "prefect_server" in getattr(item, "fixturenames", ()):
        return "flow"
    return item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")


def _place(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group").args[0]
    return LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Keep every test away from the artifacts and the hub of the person who runs it."""
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a folder, which is removed after the last test of the file."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(tmp_path_factory.mktemp(name))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread of torch, so that sums are taken in a fixed order."""
    with _one_thread():
        yield


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory) -> Iterator[Path]:
    """Run Prefect's server on a temporary database; yield an empty database of its version (`new_database`)."""
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
    from prefect.testing.utilities import prefect_test_harness

    empty = tmp_path_factory.mktemp("prefect") / "empty.db"
    with prefect_test_harness(server_startup_timeout=600):  # of a busy machine
        used = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().rpartition(":///")[2]
        with closing(sqlite3.connect(used)) as database, closing(sqlite3.connect(empty)) as copy:
            database.backup(copy)
        yield empty


@pytest.fixture
def new_database(prefect_server) -> Callable[[Path], None]:
    """Return a function that gives an artifact root a new database of Prefect.

    The first command in that root would migrate one for ten seconds, which `tests/flows/test_server.py` does once.
    """

    def give(root: Path) -> None:
        (root / "prefect").mkdir(parents=True)
        shutil.copyfile(prefect_server, root / "prefect" / "prefect.db")

    return give


@pytest.fixture(scope="session")
def finished(prefect_server, tmp_path_factory) -> tuple[Path, RunSummary]:
    """Run the small demo once; return its home, which tests must not change, and its summary."""
    from tests.helpers.small_runs import demo_run

    home = tmp_path_factory.mktemp("home")
    with _one_thread():  # as in other processes, which train to the same bit
        return home, demo_run(home)
