"""A Ray cluster of several raylets on this machine, each in a network of its own if the system allows it.

With Linux namespaces, every node has its own network, process ids and /tmp/ray, behind one bridge, and killing a node
ends all of its processes at once. Where they are not allowed, nodes are groups of processes on 127.0.0.x.
`CLIP_SCGI_TEST_NETWORK=loopback` selects the second way.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.helpers.places import REPO

PORT = 6379
_START_SECONDS = 120
_ALONE = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def has_namespaces() -> bool:
    """Return True if this process may create network namespaces."""
    tools = all(shutil.which(name) for name in ("unshare", "nsenter", "ip"))
    if not tools or os.environ.get("CLIP_SCGI_TEST_NETWORK") == "loopback":
        return False
    trial = "ip link add name try0 type bridge && mount -t tmpfs none /mnt"
    words = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", trial]
    done = subprocess.run(words, capture_output=True, check=False)
    return done.returncode == 0


def wait_for(condition: Callable[[], object], what: str, seconds: float = _START_SECONDS) -> None:
    """Wait until `condition` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} seconds"
        time.sleep(0.1)


class Machine:
    """A place for processes with an address of its own. switch: the process that holds the bridge; None: loopback."""

    def __init__(self, number: int, folder: Path, switch: int | None) -> None:
        self.number, self.folder, self.switch = number, folder, switch
        self.started: list[subprocess.Popen[bytes]] = []
        self.init: int | None = None
        self.holder: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.{number + 1}" if switch is None else f"10.77.0.{number}"
        if switch is not None:
            self._plug_in(switch)

    def _plug_in(self, switch: int) -> None:
        enter = ["nsenter", f"--target={switch}", "--user", "--net", "--preserve-credentials"]
        self.holder = subprocess.Popen([*enter, *_ALONE, "sleep", "infinity"])
        holder = psutil.Process(self.holder.pid)

        def inside() -> list[psutil.Process]:
            return [child for child in holder.children(recursive=True) if child.name() == "sleep"]

        wait_for(inside, f"machine {self.number}")
        self.init = inside()[0].pid
        cable = f"cable{self.number}"
        subprocess.run([*enter, "ip", "link", "del", cable], capture_output=True, check=False)  # of a former machine
        # A hardware address of its own, because the others remember that of a former machine with this number.
        own = f"address 02:00:00:00:00:{self.number:02x} netns {self.init}"
        end = f"ip link add {cable} type veth peer name eth0 {own} && ip link set {cable} master lan up"
        subprocess.run([*enter, "sh", "-c", end], check=True)
        setup = f"ip link set lo up; ip addr add {self.address}/24 dev eth0; ip link set eth0 up"
        self.run("sh", "-ec", f"{setup}; mkdir -p /tmp/ray; mount -t tmpfs none /tmp/ray").check_returncode()

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this machine."""
        if self.init is None:
            return list(words)
        enter = ["nsenter", f"--target={self.init}", "--user", "--net", "--mount", "--pid", "--preserve-credentials"]
        return [*enter, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run a short command on this machine."""
        return subprocess.run(self.command(*words), capture_output=True, check=False)

    def start(self, *words: str, log: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program on this machine; its output goes to the file `log`."""
        hidden = {name for name in os.environ if name.startswith(("RAY_", "PREFECT_", "CLIP_SCGI_"))}
        hidden.add("TMPDIR")  # that of the tests is shared, /tmp/ray is the machine's own
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(self.folder)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPO), "DO_NOT_TRACK": "1", **variables}
        with (self.folder / log).open("ab") as stream:
            process = subprocess.Popen(
                self.command(*words), stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """End every process of this machine at once, as a loss of power would."""
        family = [found for process in self.started for found in _family(process.pid)]
        if self.init is not None:
            with suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in [*self.started, *([self.holder] if self.holder else [])]:
            process.wait(240)
        self.started = []


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


class Lan:
    """Machines that reach each other. folder: for logs and home folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: dict[int, Machine] = {}
        self.switch: subprocess.Popen[bytes] | None = None
        if has_namespaces():
            make = "ip link set lo up; ip link add name lan type bridge; ip link set lan up; exec sleep infinity"
            words = ["unshare", "--map-root-user", "--net", "sh", "-ec", make]
            self.switch = subprocess.Popen(words)
            pid = self.switch.pid
            wait_for(lambda: psutil.Process(pid).name() == "sleep", "the bridge")

    @property
    def kind(self) -> str:
        """How the machines are told apart."""
        return "loopback addresses" if self.switch is None else "network namespaces"

    def machine(self, number: int) -> Machine:
        """Return a new machine with a number from 1 on; a former one of that number must have been killed."""
        self.machines[number] = Machine(number, self.folder, self.switch.pid if self.switch else None)
        return self.machines[number]

    def end(self) -> None:
        """End everything."""
        for machine in self.machines.values():
            machine.kill()
        if self.switch:
            self.switch.kill()
            self.switch.wait(240)


@contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    """Yield a network without machines, and end all of them afterwards."""
    network = Lan(folder)
    try:
        yield network
    finally:
        network.end()


def ray_program() -> str:
    """Return the path of the program ``ray`` of this environment."""
    return str(Path(sys.executable).with_name("ray"))


def start_head(machine: Machine, *, cpus: int = 0, **variables: str) -> None:
    """Start the head of a cluster on `machine`, and wait until it answers."""
    _start_ray(machine, ["--head", f"--port={PORT}", "--include-dashboard=false"], cpus, variables)


def start_node(machine: Machine, head: Machine, *, cpus: int = 1, **variables: str) -> None:
    """Start a node of the cluster of `head` on `machine`, and wait until it is part of it."""
    _start_ray(machine, [f"--address={head.address}:{PORT}"], cpus, variables)


def _start_ray(machine: Machine, words: list[str], cpus: int, variables: dict[str, str]) -> None:
    log = f"ray-{machine.number}.log"
    path = machine.folder / log
    before = path.read_text().count("runtime started") if path.exists() else 0
    common = [f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", "--object-store-memory=80000000"]
    common += ["--block", "--disable-usage-stats"]
    process = machine.start(ray_program(), "start", *words, *common, log=log, **variables)

    def is_up() -> bool:
        assert process.poll() is None, path.read_text()
        return path.read_text().count("runtime started") > before

    wait_for(is_up, f"Ray on machine {machine.number}")
