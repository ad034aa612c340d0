"""The Prefect server a command works with: the one that PREFECT_API_URL names, or one of the command's own."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from data.errors import ConfigError, RetryableError
from flows.execution.own_server import STOP_SECONDS, own_server
from flows.execution.site_server import VARIABLE, api_url, check_server, masked
from flows.interrupts import stopping

_HOME: Final = "PREFECT_HOME"
_LEVEL: Final = "PREFECT_LOGGING_LEVEL"
_QUIET: Final = "CRITICAL"


@contextmanager
def prefect_server(root: Path) -> Iterator[None]:
    """Run the block with a Prefect server that answers.

    root: artifact root. Raises ConfigError if the server that PREFECT_API_URL names does not answer, ClipScgiError if a
    server of the command's own does not start, and RetryableError if the server is lost meanwhile.
    """
    choose_defaults(root)
    url = api_url()
    _quiet_terminal()
    if url:
        check_server()
        with _loss_explained(url):
            yield
        return
    with own_server() as url, _used_by_all_threads(url), _loss_explained(url):
        try:
            yield
        finally:
            if not stopping():
                _drain()


@contextmanager
def _used_by_all_threads(url: str) -> Iterator[None]:
    """Let every thread and child process work with the API at `url` during the block.

    A thread that Prefect starts without the settings of its caller, such as the one that forwards the messages of a
    process pool, starts a second server on the same database otherwise.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, temporary_settings

    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = url
    refresh_global_settings_context()
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before
        refresh_global_settings_context()


@contextmanager
def _loss_explained(url: str) -> Iterator[None]:
    """Turn the error about a server that is lost into one message."""
    try:
        yield
    except httpx.HTTPError as error:
        raise RetryableError(
            f"Prefect's server at {masked(url)} was lost ({str(error) or type(error).__name__}); finished stages are"
            " kept: run the same command again when it answers"
        ) from error


def choose_defaults(root: Path) -> None:
    """Set quiet, local defaults for Prefect in the environment; what the user has set wins.

    Prefect reads them when it is first imported. Raises ConfigError if Prefect's home cannot be written.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The first start migrates a database, which takes longer than Prefect's own limit on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    os.environ.setdefault(_LEVEL, _QUIET)
    has_own = os.environ.get(VARIABLE) or (Path.home() / ".prefect" / "profiles.toml").exists()
    if not os.environ.get(_HOME):  # Prefect takes an empty one for the working folder
        os.environ.pop(_HOME, None)
        if has_own:
            return
    home, chosen = Path(os.environ.get(_HOME, root / "prefect")), _HOME in os.environ
    try:
        home.mkdir(parents=True, exist_ok=True)  # Prefect creates the last folder only
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        where = f"{_HOME}={home}" if chosen else f"the artifact root {root}"
        remedy = f"{_HOME} to a folder of your own, or unset it" if chosen else "--home to a folder of your own"
        raise ConfigError(f"{where} cannot be written ({error.strerror}): set {remedy}") from error
    os.environ[_HOME] = str(home)


def _quiet_terminal() -> None:
    """Send the run's log to the server and keep it off the terminal, where the stages print lines of their own."""
    if os.environ[_LEVEL] != _QUIET:
        return
    import prefect.main  # noqa: F401 - configures logging

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _drain() -> None:
    """Send the log lines and events that Prefect still holds back, before the server stops."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=STOP_SECONDS)
    EventsWorker.drain_all(timeout=STOP_SECONDS)
