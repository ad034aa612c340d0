"""A Prefect server of a command's own: a child process that is started, watched and stopped here.

It listens on 127.0.0.1 only, keeps its database in Prefect's home, is a session of its own, so that Ctrl-C on the
terminal does not reach it, and ends with the command, however that ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.request import getproxies

import httpx

from data.errors import ClipScgiError
from data.process.locks import lock
from flows.terminal import waiting

STOP_SECONDS: Final = 5.0
_HOST: Final = "127.0.0.1"
_ANSWER_SECONDS: Final = 5.0
_KEPT_SETTINGS: Final = ("PREFECT_HOME", "PREFECT_LOGGING_", "PREFECT_SERVER_ANALYTICS_", "PREFECT_SERVER_LOGGING_")
_MARKS: Final = {
    "PREFECT_UI_ENABLED": "0",
    # Prefect starts only what the runs of one process need: no scheduler, no late runs, no foreman.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    # Automations are registered by `clip-scgi deploy`, with the server of a site.
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "0",
    # A run saves no block: its results are plain data, and the stages keep their files themselves.
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",
}
_CAUSES: Final = (
    ("Can't locate revision", "another version of Prefect has written its database: move {home} away"),
    ("disk is full", "the disk that holds {home} is full: free some space"),
    ("No space left", "the disk that holds {home} is full: free some space"),
    ("unable to open database", "{home} is not writable: set PREFECT_HOME to a folder that is"),
    ("readonly database", "{home} is not writable: set PREFECT_HOME to a folder that is"),
    ("file is not a database", "its database is damaged: move {home} away"),
    ("malformed", "its database is damaged: move {home} away"),
)


@contextmanager
def own_server() -> Iterator[str]:
    """Run the block with a server and yield the URL of its API. Raises ClipScgiError if it does not start."""
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    with tempfile.TemporaryFile() as log, _reached_directly():
        # One server starts at a time: two that migrate one new database at once stop each other.
        with lock(home / "starting.lock"):
            process, url = _start(log)
            try:
                with waiting("starting a Prefect server for this command, on 127.0.0.1 only"):
                    _wait(process, url, log, home)
            except BaseException:
                _stop(process)
                raise
        try:
            yield url
        finally:
            _stop(process)


@contextmanager
def _reached_directly() -> Iterator[None]:
    """Keep a proxy of the site (HTTP_PROXY) out of the way to the server, for all HTTP clients of this process."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = ",".join(filter(None, [getproxies().get("no"), _HOST]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def _start(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    """Start the process, which writes to `log`, and return it with the URL of its API."""
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    kept = {name: value for name, value in {**os.environ, **settings}.items() if _is_for_own_server(name)}
    with socket.socket() as bound:
        bound.bind((_HOST, 0))
        words = [sys.executable, "-m", "flows.execution.server_process", str(bound.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**kept, **_MARKS},
            pass_fds=(bound.fileno(),),
            start_new_session=True,
        )
        return process, f"http://{_HOST}:{bound.getsockname()[1]}/api"


def _is_for_own_server(name: str) -> bool:
    """Return False if a variable describes the server of a site: its database, broker, password or path of the API."""
    return not name.startswith("PREFECT_") or name.startswith(_KEPT_SETTINGS)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes], home: Path) -> None:
    """Wait until the server answers. Raises ClipScgiError if it ends or does not answer in time."""
    from prefect.settings import get_current_settings

    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    deadline = time.monotonic() + seconds
    with httpx.Client(trust_env=False, timeout=_ANSWER_SECONDS) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    ended = process.poll()
    happened = f"did not answer within {seconds} s" if ended is None else f"ended with status {ended} while starting"
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    raise ClipScgiError(f"Prefect's own server {happened}: {_explained(lines, home)}")


def _explained(lines: list[str], home: Path) -> str:
    """Return what stopped a server that wrote `lines`, and what to do."""
    text = "\n".join(lines)
    for mark, cause in _CAUSES:
        if mark in text:
            return f"{cause.format(home=home)}; artifacts are not affected"
    return f"its last lines are:\n{chr(10).join(lines[-8:])}" if lines else "it did not write anything"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
