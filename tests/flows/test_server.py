"""A Prefect server that cannot be used ends a command with one message, within seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.errors import ConfigError
from flows.execution.server import choose_defaults
from flows.execution.site_server import check_server, masked
from tests.helpers.places import REPO
from tests.helpers.programs import CLIP_SCGI


@contextmanager
def answering(status: int, body: str, kind: str) -> Iterator[str]:
    """Answer every request alike; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/api"
    http.shutdown()
    http.server_close()
    thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """Accept connections and never answer; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


@contextmanager
def refusing() -> Iterator[str]:
    """Yield an address where no server listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/api"


@contextmanager
def at(url: str) -> Iterator[str]:
    """Yield `url`."""
    yield url


DEAD = {
    "refused": (refusing, (), "cannot be reached"),
    "no such host": (at, ("http://nobody.invalid:4200/api",), "cannot be reached"),
    "not an address": (at, ("localhost:4200",), "is not an http address"),
    "not found": (answering, (404, '{"detail": "Not Found"}', "application/json"), "HTTP 404"),
    "broken": (answering, (500, "oops", "text/plain"), "HTTP 500"),
    "unavailable": (answering, (503, "oops", "text/plain"), "HTTP 503"),
    "refuses credentials": (answering, (401, "{}", "application/json"), "PREFECT_API_AUTH_STRING"),
    "a web page": (answering, (200, "<html>hello</html>", "text/html"), "not a Prefect API"),
    "other JSON": (answering, (200, '{"a": 1}', "application/json"), "not a Prefect API"),
    "another version": (answering, (200, '"2.20.3"', "application/json"), "2.20.3"),
    "silent": (silent, (), "does not answer within 5 s"),
}


@pytest.mark.parametrize("case", DEAD)
def test_a_server_that_cannot_be_used_is_one_message(case):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    make, arguments, wanted = DEAD[case]
    with make(*arguments) as url, temporary_settings({PREFECT_API_URL: url}), pytest.raises(ConfigError) as caught:
        check_server()
    message = str(caught.value)
    assert wanted in message
    assert url in message
    assert "PREFECT_API_URL" in message


def test_a_password_in_the_address_is_not_shown():
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = "http://me:secret@127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(ConfigError) as caught:
        check_server()
    assert "http://***@127.0.0.1:9/api" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:4200/api", "http://host:4200/api"),
        ("http://me:secret@host/api", "http://***@host/api"),
        ("http://me:sec/secret@ret@host:4200/api", "http://***@host:4200/api"),
        ("http://me:secret://secret?secret@host/api", "http://***@host/api"),
        ("me:secret@host/api", "***@host/api"),
        ("http://me:secret@[::1/api", "http://***@[::1/api"),
        ("http://host/api?token=secret", "http://host/api?***"),
    ],
)
def test_parts_of_an_address_that_may_be_secret_are_masked(address, shown):
    assert masked(address) == shown


def run_python(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's folder as a user whose home is `tmp_path`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    env = kept | {"HOME": str(tmp_path), "CLIP_SCGI_HOME": str(tmp_path / "artifacts")} | variables
    return subprocess.run([sys.executable, *words], cwd=REPO, env=env, capture_output=True, text=True, check=False)


def command(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command line as a user whose home is `tmp_path`."""
    return run_python(tmp_path, "-m", CLIP_SCGI, *words, **variables)


FIRST_STAGE = ("run", "demo", "--until", "index")
"""A command that starts a server; the checks of later stages would load torch first."""

_EACH = """
import json, sys
from flows.cli.app import main
sys.exit(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""


def test_every_command_that_needs_the_server_says_so(tmp_path):
    commands = [["demo"], ["search", "demo", "a man", "--train"], ["deploy", "demo"], ["serve", "demo"]]
    done = run_python(tmp_path, "-c", _EACH, json.dumps(commands), PREFECT_API_URL="http://127.0.0.1:9/api")
    *lines, statuses = done.stderr.splitlines()
    assert json.loads(statuses) == [1] * len(commands)
    assert len(lines) == len(commands), done.stderr
    for line in lines:
        assert line.startswith("clip-scgi: Prefect's server at http://127.0.0.1:9/api cannot be reached")
        assert "PREFECT_API_URL is set in the environment" in line


def test_an_address_in_a_profile_is_named_as_such(tmp_path):
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(
        'active = "site"\n[profiles.site]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    done = command(tmp_path, *FIRST_STAGE)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "http://127.0.0.1:9/api cannot be reached" in line
    assert "PREFECT_API_URL is set in a Prefect profile" in line


UNREADABLE = [
    ({"PREFECT_API_URL": "http://me:secret@[::1/api"}, None, "Invalid IPv6 URL"),
    ({"PREFECT_API_REQUEST_TIMEOUT": "secret"}, None, "valid number"),
    ({}, "secret [", "at line 1, column"),
]


@pytest.mark.parametrize(
    ("words", "variables", "profiles", "wanted"),
    [
        *((FIRST_STAGE, *case) for case in UNREADABLE),
        (("deploy", "demo"), *UNREADABLE[0]),
        *(pytest.param(("deploy", "demo"), *case, marks=pytest.mark.soak) for case in UNREADABLE[1:]),
    ],
)
def test_settings_that_prefect_cannot_read_are_one_message(tmp_path, words, variables, profiles, wanted):
    if profiles:
        (tmp_path / ".prefect").mkdir()
        (tmp_path / ".prefect" / "profiles.toml").write_text(profiles)
    done = command(tmp_path, *words, **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("clip-scgi: Prefect's settings cannot be used (")
    assert wanted in line
    assert "PREFECT_ variables of the environment" in line
    assert "secret" not in line


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = command(tmp_path, *FIRST_STAGE, PREFECT_HOME=str(tmp_path / "file" / "prefect"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"clip-scgi: PREFECT_HOME={tmp_path}/file/prefect cannot be written (Not a directory): set PREFECT_HOME to a"
        " folder of your own, or unset it"
    )


def test_an_artifact_root_that_cannot_be_written_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("")
    done = command(tmp_path, *FIRST_STAGE, CLIP_SCGI_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"clip-scgi: the artifact root {tmp_path}/file cannot be written (Not a directory): set --home to a folder of"
        " your own"
    )


@pytest.mark.parametrize("damage", [pytest.param("a newer version", marks=pytest.mark.soak), "no database"])
def test_an_own_server_that_cannot_start_says_why(tmp_path, damage):
    import sqlite3

    home = tmp_path / "artifacts" / "prefect"
    home.mkdir(parents=True)
    if damage == "no database":
        (home / "prefect.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
        wanted = "its database is damaged"
    else:
        with sqlite3.connect(home / "prefect.db") as database:
            database.execute("create table alembic_version (version_num varchar(32) not null)")
            database.execute("insert into alembic_version values ('ffffffffffff')")
        wanted = "another version of Prefect has written its database"
    done = command(tmp_path, *FIRST_STAGE)
    assert done.returncode == 1
    waiting, line = done.stderr.splitlines()
    assert waiting == "starting a Prefect server for this command, on 127.0.0.1 only"
    assert line.startswith("clip-scgi: Prefect's own server ended with status")
    assert wanted in line
    assert f"move {home} away" in line


def test_certificates_that_do_not_exist_are_named(tmp_path):
    file = tmp_path / "none.pem"
    commands = [[*FIRST_STAGE], ["deploy", "demo"]]
    done = run_python(tmp_path, "-c", _EACH, json.dumps(commands), SSL_CERT_FILE=str(file))
    line = f"clip-scgi: SSL_CERT_FILE={file} is not a file: correct or unset that environment variable"
    assert done.stderr.splitlines() == [line, line, "[1, 1]"]


@pytest.mark.parametrize("has_profile", [False, True])
def test_an_empty_prefect_home_counts_as_unset(tmp_path, monkeypatch, has_profile):
    """Prefect itself would put its database into the working folder."""
    if has_profile:
        (tmp_path / ".prefect").mkdir()
        (tmp_path / ".prefect" / "profiles.toml").write_text("")
    for name in [name for name in os.environ if name.startswith("PREFECT") or name == "DO_NOT_TRACK"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_HOME": "", "HOME": str(tmp_path)})
    choose_defaults(tmp_path / "artifacts")
    assert os.environ.get("PREFECT_HOME") == (None if has_profile else str(tmp_path / "artifacts" / "prefect"))


@pytest.mark.soak
def test_two_first_runs_in_one_artifact_root_do_not_stop_each_other(tmp_path):
    small = ["--set", "synthetic.train_identities=2", "--set", "synthetic.test_identities=2"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: command(tmp_path, "run", "demo", "--until", "index", *small), range(2)))
    assert [item.returncode for item in done] == [0, 0], [item.stderr for item in done]


def test_neither_a_proxy_nor_settings_of_a_sites_server_reach_the_own_one(tmp_path):
    nowhere, database = "http://127.0.0.1:9", "postgresql+asyncpg://nobody@127.0.0.1:9/none"
    foreign = {
        "HTTP_PROXY": nowhere,
        "http_proxy": nowhere,
        "PREFECT_SERVER_API_AUTH_STRING": "clip:secret",
        "PREFECT_SERVER_API_BASE_PATH": "/v2",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    }
    small = ["--set", "synthetic.train_identities=2", "--set", "synthetic.test_identities=2"]
    done = command(tmp_path, "run", "demo", "--until", "index", *small, **foreign)
    assert done.returncode == 0, done.stderr
    assert "✓ index" in done.stderr
    kept = recorded(tmp_path / "artifacts" / "prefect" / "prefect.db")
    assert kept["select state_type from flow_run"] == ["COMPLETED"]
    assert kept["select state_type from task_run"] == ["COMPLETED"]
    assert any("index" in line for line in kept["select message from log"])
    assert kept["select name from block_type"] == [], "no block is registered that no run uses"


def recorded(file: Path) -> dict[str, list[str]]:
    """Return what the own server has written about its runs: query -> values."""
    import sqlite3

    queries = (
        "select state_type from flow_run",
        "select state_type from task_run",
        "select message from log",
        "select name from block_type",
    )
    with closing(sqlite3.connect(file)) as database:
        return {query: [value for (value,) in database.execute(query)] for query in queries}


def test_a_home_whose_name_is_not_utf8_is_one_message(tmp_path):
    done = command(tmp_path, "artifacts", "ls", CLIP_SCGI_HOME=os.fsdecode(bytes(tmp_path / "caf") + b"\xe9"))
    assert done.returncode == 1
    assert done.stderr.startswith("clip-scgi: ")
    assert "UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1


_ASK = """
import os, sys, threading
from pathlib import Path

from flows.execution.server import prefect_server


def ask():
    from prefect.settings import get_current_settings

    answers.append(get_current_settings().api.url)


answers = []
with prefect_server(Path(sys.argv[1])):
    ask()
    thread = threading.Thread(target=ask)  # without the context of this one, like the threads of a process pool
    thread.start()
    thread.join()
    answers.append(os.environ["PREFECT_API_URL"])
ask()
print(len({*answers[:3]}), answers[0].startswith("http://127.0.0.1:"), answers[3], "PREFECT_API_URL" in os.environ)
"""


def test_every_thread_works_with_the_own_server(tmp_path, new_database):
    """A thread that does not know it starts a second server on the same database."""
    new_database(tmp_path)
    done = run_python(tmp_path, "-c", _ASK, str(tmp_path))
    assert done.stdout.split() == ["1", "True", "None", "False"], done.stdout + done.stderr
