"""The Prefect server a command works with: the one that PREFECT_API_URL names, or one of the command's own.

The own one listens on 127.0.0.1 only, keeps its database in the artifact root, is a session of its own, so that
Ctrl-C on the terminal does not reach it, and ends with the command however that ends.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from data.errors import ClipScgiError, ConfigError, RetryableError
from data.process.locks import lock
from flows.interrupts import stopping
from flows.terminal import waiting

VARIABLE: Final = "PREFECT_API_URL"
_HOST: Final = "127.0.0.1"
_HOME: Final = "PREFECT_HOME"
_LEVEL: Final = "PREFECT_LOGGING_LEVEL"
_ANSWER_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
_REMEDY: Final = "start that server, correct PREFECT_API_URL, or unset it to let each command start a server of its own"
_SETTINGS_REMEDY: Final = (
    "Correct or unset the PREFECT_ variables of the environment, and those in ~/.prefect/profiles.toml, .env,"
    " prefect.toml and pyproject.toml of this folder"
)
_OWN_SETTINGS: Final = (_HOME, "PREFECT_LOGGING_", "PREFECT_SERVER_ANALYTICS_", "PREFECT_SERVER_LOGGING_")
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
def prefect_server(root: Path) -> Iterator[None]:
    """Run the block with a Prefect server that answers.

    root: artifact root. Raises ConfigError where the server that PREFECT_API_URL names does not answer, ClipScgiError
    where a server of the command's own does not start, and RetryableError when a server is lost meanwhile.
    """
    _choose_defaults(root)
    url = api_url()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    _quiet_terminal()
    if url:
        check_server()
        with _loss_explained(url):
            yield
        return
    with _own_server() as url, temporary_settings({PREFECT_API_URL: url}), _loss_explained(url):
        try:
            yield
        finally:
            if not stopping():
                _drain()


def check_server() -> None:
    """Raise ConfigError unless a Prefect API answers at PREFECT_API_URL within seconds, to these credentials."""
    url = str(api_url())
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"Prefect's server {masked(url)!r} is not an http address. {_advice(None)}")
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
        ):
            client.raise_for_api_version_mismatch()
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError, OSError) as error:
        # Prefect wraps most of what goes wrong in a RuntimeError.
        cause = error if isinstance(error, httpx.HTTPError) else error.__cause__ or error
        raise ConfigError(f"Prefect's server at {masked(url)} {_reason(cause)}. {_advice(cause)}") from error


def api_url() -> str | None:
    """Return the address that Prefect is set to. Raises ConfigError where its variables or profiles are not valid."""
    from pydantic import ValidationError

    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not Path(certificates).is_file():  # Prefect cannot even be imported
        raise ConfigError(f"SSL_CERT_FILE={certificates} is not a file: correct or unset that environment variable")
    try:
        # Prefect reads its settings when it is first imported, and prints what is wrong with their values.
        with redirect_stderr(StringIO()) as printed:
            from prefect.settings import get_current_settings

            url = get_current_settings().api.url
        sys.stderr.write(printed.getvalue())
        return url
    except ValidationError as error:
        # Without what was given, which may be a secret.
        found = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        wrong = "; ".join(": ".join([*map(str, item["loc"]), item["msg"]]) for item in found)
    except ValueError as error:
        wrong = str(error)
    raise ConfigError(f"Prefect's settings cannot be used ({wrong}). {_SETTINGS_REMEDY}")


def masked(url: str) -> str:
    """Return `url` with its user name, password and query replaced by asterisks, even where it is not well-formed."""
    user, has_user, rest = url.rpartition("@")
    scheme, separator, _ = user.partition("://")
    shown = (f"{scheme}{separator}" if separator else "") + ("***@" if has_user else "")
    address, has_query, _ = rest.partition("?")
    return f"{shown}{address}{'?***' if has_query else ''}"


def _reason(cause: BaseException) -> str:
    """Return what was wrong with the answer, as the end of a sentence about the server."""
    if isinstance(cause, httpx.HTTPStatusError):
        return f"answers with HTTP {cause.response.status_code} instead of a version"
    if isinstance(cause, httpx.TimeoutException):
        return f"does not answer within {_ANSWER_SECONDS:.0f} s"
    if isinstance(cause, httpx.TransportError | OSError):
        return f"cannot be reached ({str(cause) or type(cause).__name__})"
    if isinstance(cause, ValueError):
        return "is not a Prefect API: its answer has another form"
    return f"cannot be used ({cause})"


def _advice(cause: BaseException | None) -> str:
    where = "the environment" if os.environ.get(VARIABLE) else "a Prefect profile or configuration file"
    refused = isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code in (401, 403)
    remedy = "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY to its credentials" if refused else _REMEDY
    return f"{VARIABLE} is set in {where}: {remedy}; such an address ends in /api"


@contextmanager
def _loss_explained(url: str) -> Iterator[None]:
    """Turn the error of a server that is lost into one message."""
    try:
        yield
    except httpx.HTTPError as error:
        raise RetryableError(
            f"Prefect's server at {masked(url)} was lost ({str(error) or type(error).__name__}); finished stages are"
            " kept: run the same command again when it answers"
        ) from error


def _choose_defaults(root: Path) -> None:
    """Choose quiet, local defaults for Prefect, which reads them when it is first imported; what the user set wins."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The first start migrates a database, which takes longer than Prefect's own limit on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault(_LEVEL, "CRITICAL")
    has_own = os.environ.get(VARIABLE) or (Path.home() / ".prefect" / "profiles.toml").exists()
    if not os.environ.get(_HOME):  # Prefect takes an empty one for the working folder
        os.environ.pop(_HOME, None)
        if has_own:
            return
    home, chosen = Path(os.environ.get(_HOME, root / "prefect")), _HOME in os.environ
    try:
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        where = f"{_HOME}={home}" if chosen else f"the artifact root {root}"
        remedy = f"{_HOME} to a folder of your own, or unset it" if chosen else "--home to a folder of your own"
        raise ConfigError(f"{where} cannot be written ({error.strerror}): set {remedy}") from error
    os.environ[_HOME] = str(home)


def _quiet_terminal() -> None:
    """Send the run's log to the server and keep it off the terminal, where the stages print lines of their own."""
    if os.environ[_LEVEL] != "CRITICAL":
        return
    import prefect.main  # noqa: F401 - configures logging

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False


@contextmanager
def _own_server() -> Iterator[str]:
    """Start a server, yield the URL of its API, and stop it."""
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    # A proxy of the site (HTTP_PROXY) cannot reach it.
    os.environ["no_proxy"] = ",".join(filter(None, [getproxies().get("no"), _HOST]))
    with tempfile.TemporaryFile() as log:
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


def _start(log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    wanted = {name: value for name, value in {**os.environ, **settings}.items() if _is_for_own_server(name)}
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    with socket.socket() as bound:
        bound.bind((_HOST, 0))
        words = [sys.executable, "-m", "flows.execution.server_process", str(bound.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**wanted, **marks},
            pass_fds=(bound.fileno(),),
            start_new_session=True,
        )
        return process, f"http://{_HOST}:{bound.getsockname()[1]}/api"


def _is_for_own_server(name: str) -> bool:
    """Return True unless a variable describes a site's server: its database, broker, password or path of the API."""
    return not name.startswith("PREFECT_") or name.startswith(_OWN_SETTINGS)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes], home: Path) -> None:
    """Wait until the server answers. Raises ClipScgiError when it ends or stays silent."""
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
    return f"its last lines are:\n{chr(10).join(lines[-8:])}" if lines else "it wrote nothing"


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _drain() -> None:
    """Send what Prefect still holds back of the run's log and events, before the server goes."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=_STOP_SECONDS)
    EventsWorker.drain_all(timeout=_STOP_SECONDS)
