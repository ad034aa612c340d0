"""The process of a command's own Prefect server: it serves on a socket it is given, and ends with its parent.

python -m flows.execution.server_process SOCKET PARENT
"""

from __future__ import annotations

import socket
import sys

from data.process.children import follow


def main(descriptor: int, parent: int) -> None:
    """Serve Prefect's API on the bound TCP socket `descriptor` until SIGTERM, or until the process `parent` ends."""
    follow(parent)
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=3,
    )
    with socket.socket(fileno=descriptor) as bound:
        uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
