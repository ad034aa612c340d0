"""The topology of docker-compose.yml as plain processes: PostgreSQL, Redis, Prefect server, its services, a worker.

Everything listens on 127.0.0.1, on a free port, with its data in one temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

PASSWORD = "a-password-that-must-show-up-nowhere"
AUTH = f"clip:{PASSWORD}"
POOL = "clip-scgi"

T = TypeVar("T")


def find_program(name: str) -> str | None:
    """Return the path of a program, or None. Debian's folders of PostgreSQL are searched too."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return shutil.which(name) or (str(places[-1]) if places else None)


def missing_programs() -> list[str]:
    """Return the programs of the topology that are not installed."""
    return [name for name in ("initdb", "postgres", "redis-server", "faketime") if find_program(name) is None]


def wait_for(what: str, check: Callable[[], T], seconds: float = 120, pause: float = 0.5) -> T:
    """Return the first true value of `check`; raise TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(pause)
    raise TimeoutError(f"no result after {seconds:.0f} s: {what}")


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return stream.getsockname()[1]


class Topology:
    """Starts, stops, kills and restarts the processes. Each writes <name>.log to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.ports = {name: free_port() for name in ("postgres", "redis", "server")}
        self.processes: dict[str, subprocess.Popen] = {}
        self.url = f"http://127.0.0.1:{self.ports['server']}/api"
        self.postgres_user = "postgres" if os.getuid() == 0 else None
        self.environment = self._environment()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        redis = f"redis://127.0.0.1:{self.ports['redis']}/1"
        return kept | {
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "CLIP_SCGI_HOME": str(self.home),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PREFECT_CLIENT_MAX_RETRIES": "10",
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_DATABASE_NAME": "postgres",
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(self.ports["redis"]),
            "PREFECT_SERVER_DOCKET_URL": redis,
            # Prefect's default intervals are for large sites; a test waits for these.
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",
        }

    def start_all(self) -> None:
        self.start_postgres()
        self.start_redis()
        self.start_server()
        self.start_services()

    def start_postgres(self) -> None:
        data = self.folder / "pg"
        if not data.exists():
            secret = self.folder / "pg-password"
            secret.write_text(PASSWORD)
            data.mkdir()
            if self.postgres_user:  # PostgreSQL refuses to run as root
                for path in (secret, data):
                    shutil.chown(path, self.postgres_user)
            command = [find_program("initdb"), "-D", data, "-U", "prefect", "-A", "scram-sha-256", "--no-sync"]
            subprocess.run(
                [*map(str, command), f"--pwfile={secret}"], check=True, capture_output=True, user=self.postgres_user
            )
            secret.unlink()
        port = self.ports["postgres"]
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "unix_socket_directories="]
        self._start("postgres", find_program("postgres"), "-D", data, "-p", port, *options, user=self.postgres_user)
        wait_for("PostgreSQL", lambda: _listens(port), 60)

    def start_redis(self) -> None:
        port = self.ports["redis"]
        words = ["--bind", "127.0.0.1", "--dir", self.folder, "--save", "", "--appendonly", "yes"]
        self._start("redis", find_program("redis-server"), "--port", port, *words)
        wait_for("Redis", lambda: _listens(port), 60)

    def start_server(self) -> None:
        words = ["--host", "127.0.0.1", "--port", self.ports["server"], "--no-services"]
        self._start("server", *_PREFECT, "server", "start", *words)
        wait_for("the Prefect server", self.is_ready, 180)

    def start_services(self) -> None:
        self._start(
            "services", *_PREFECT, "server", "services", "start", PREFECT_SERVER_DATABASE_MIGRATE_ON_START="false"
        )

    def start_worker(self) -> None:
        self._start("worker", *_PREFECT, "worker", "start", "--pool", POOL, "--type", "process")

    def is_ready(self) -> bool:
        if self.processes["server"].poll() is not None:
            raise RuntimeError(f"the Prefect server has ended:\n{self.tail('server')}")
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one process and wait. SIGQUIT makes PostgreSQL stop at once."""
        process = self.processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_tree(self, name: str) -> None:
        """Kill a process and its descendants, as when a machine loses power."""
        process = self.processes.pop(name)
        for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            victim.kill()
        process.wait()

    def children(self, name: str) -> list[psutil.Process]:
        return psutil.Process(self.processes[name].pid).children(recursive=True)

    def pause(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def stop_all(self) -> None:
        for name in ("worker", "services", "server", "redis", "postgres"):
            if name in self.processes:
                self.resume(name)
                self.stop(name, signal.SIGQUIT if name == "postgres" else signal.SIGTERM)

    def run(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of this topology does."""
        return subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def prefect(self, *words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return self.run(*_PREFECT, *words, timeout=timeout)

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def tail(self, name: str, lines: int = 40) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def _start(self, name: str, *words: object, user: str | None = None, **extra: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in words],
                env=self.environment | extra,
                cwd="/" if user else self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                user=user,
                start_new_session=True,
            )


_PREFECT = (sys.executable, "-m", "prefect")


def _listens(port: int) -> bool:
    with socket.socket() as stream:
        return stream.connect_ex(("127.0.0.1", port)) == 0
