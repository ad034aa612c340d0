"""A Ray cluster of three raylets with a network each: a node is killed, one joins late, the head restarts.

`make cluster` runs it, and there a test that skips has failed. The nodes share folders, as machines share a file
system.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.store.claims import BUCKETS, Claims
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ConfigError
from data.process.locks import try_lock
from data.stages.images import IndexedImages
from flows.recipes import build_recipe
from flows.workers.jobs import CaptionJob
from flows.workers.ray_pool import Pool
from flows.workers.ray_run import driver_environment
from flows.workers.ray_worker import Probe
from reid.config.evaluate import EvaluateConfig
from reid.evaluation.features import STAGE_VERSION
from reid.inputs.evaluation_rows import evaluation_rows
from tests.helpers.caption_worlds import captions_folder
from tests.helpers.places import REPO
from tests.helpers.ray_nodes import PORT, Machine, lan, ray_program, start_head, start_node, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800), pytest.mark.xdist_group("cluster")]

WORLD = ["synthetic.train_identities=16", "synthetic.test_identities=9", "synthetic.images_per_camera=2"]
WORLD += ["synthetic.cameras=3", "caption.batch_size=1", "train.schedule.epochs=1"]
IMAGES = 150
BATCH = 4
QUICK = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_worker_niceness": "0"}
TOKEN = {"RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def network(module_folder):
    if find_spec("ray") is None:
        if os.environ.get("CLIP_SCGI_REQUIRE_CLUSTER") == "1":
            pytest.fail("CLIP_SCGI_REQUIRE_CLUSTER=1, but ray is not installed: pip install 'clip-scgi[ray]'")
        pytest.skip("the extra [ray] is not installed")
    folder = module_folder("cluster")  # the home folder on every machine, with the token of Ray
    token = [ray_program(), "get-auth-token", "--generate"]
    subprocess.run(token, env={**os.environ, "HOME": str(folder)}, check=True, capture_output=True)
    with lan(folder) as made:
        sys.stderr.write(f"the nodes are {made.kind}\n")
        yield made


@pytest.fixture
def nodes(network):
    """Start a cluster: a head without room for workers on machine 1, a node with one CPU on machines 2 and 3."""
    machines = [network.machine(number) for number in (1, 2, 3)]
    start_head(machines[0], **QUICK, **TOKEN)
    for machine in machines[1:]:
        start_node(machine, machines[0], **QUICK, **TOKEN)
    yield machines
    for machine in network.machines.values():
        machine.kill()


class Command:
    """A command of clip-scgi on a machine of the cluster. home: its artifact root."""

    def __init__(self, machine: Machine, head: Machine, home: Path, *words: str) -> None:
        self.home, self.machine = home, machine
        self.log = machine.folder / f"{home.name}-{machine.number}.log"
        self.begin = self.log.stat().st_size if self.log.exists() else 0
        runner = [] if "scale.runner=threads" in words else ["scale.runner=ray"]
        options = [word for setting in (*WORLD, *runner) for word in ("--set", setting)]
        self.process = machine.start(
            sys.executable,
            *("-m", "flows.cli.app", *words, *options),
            log=self.log.name,
            RAY_ADDRESS=f"{head.address}:{PORT}",
            CLIP_SCGI_HOME=str(home),
            **TOKEN,
        )

    @property
    def written(self) -> str:
        return self.log.read_bytes()[self.begin :].decode(errors="replace")

    def program(self) -> psutil.Process:
        """Return the process of the command itself, without those that lead to its machine."""
        started = psutil.Process(self.process.pid)
        found = [it for it in [started, *started.children(recursive=True)] if "flows.cli.app" in it.cmdline()]
        return next(it for it in found if "nsenter" not in it.cmdline()[0])

    def wait_for_captions(self, count: int) -> None:
        def are_there() -> bool:
            assert self.process.poll() is None, self.written
            return len(captions(self.home)) >= count

        wait_for(are_there, f"{count} captions", 400)

    def end(self) -> int:
        return self.process.wait(400)


def captions(home: Path) -> list[str]:
    """Return the digests of the captioned images, once per row of a shard."""
    shards = sorted((home / "captions").glob("*/part-*.parquet"))
    return [digest for path in shards for digest in pq.read_table(path, columns=["image_sha256"])[0].to_pylist()]


def claimed(home: Path, buckets: Iterable[int]) -> Claims:
    """Claim buckets as another worker would, so that the command cannot end before they are released."""
    claims = Claims(captions_folder(ArtifactStore(home), build_recipe("demo", WORLD).caption))
    assert all(claims.take(bucket) for bucket in buckets)
    return claims


def claimed_part(home: Path, evaluation: str) -> IO[bytes]:
    """Claim a part of the features of an evaluation as another worker would, until the returned file is closed.

    evaluation: its fingerprint.
    """
    store = ArtifactStore(home)
    (index,) = store.sidecars("index")
    ref = ArtifactRef(stage="index", fingerprint=index.fingerprint, content="", path=str(index.folder))
    rows = len(evaluation_rows(IndexedImages(ref=ref, root=Path()), EvaluateConfig()).images.pid)
    parts = store.scratch("evaluate", evaluation) / f"parts-{STAGE_VERSION}" / f"{rows}-{BATCH}"
    claim = try_lock(parts / "claims" / "0")
    assert claim is not None
    return claim


def table(home: Path) -> pa.Table:
    (path,) = (home / "stages" / "caption").glob("*/captions.parquet")
    return pq.read_table(path).drop_columns(["batch_size"])


def workers() -> list[psutil.Process]:
    """Return the processes of actors that work."""
    return [process for process in psutil.process_iter(["cmdline"]) if "ray::Worker" in str(process.info["cmdline"])]


def test_a_node_is_killed_and_one_joins(network, nodes, tmp_path):
    head, here, other = nodes
    claims = claimed(tmp_path / "home", [bucket for bucket in range(BUCKETS) if bucket % 4])
    stopped = Command(here, head, tmp_path / "home", "caption", "demo")
    stopped.wait_for_captions(10)
    stopped.program().send_signal(signal.SIGINT)
    assert stopped.process.wait(240) == 130, stopped.written
    assert "finished work is kept" in stopped.written
    wait_for(lambda: not workers(), "the end of the workers", 15)
    kept = captions(tmp_path / "home")
    claims.release_all()

    claims = claimed(tmp_path / "home", [bucket for bucket in range(BUCKETS) if bucket % 4 == 1])
    again = Command(here, head, tmp_path / "home", "caption", "demo")
    again.wait_for_captions(len(kept) + 10)
    other.kill()
    late = network.machine(4)
    start_node(late, head, **QUICK, **TOKEN)
    wait_for(lambda: f"node {late.address} joined" in again.written, "the node that joins late", 120)
    claims.release_all()
    assert again.end() == 0, again.written
    assert f"a worker on node {other.address} is lost" in again.written
    assert re.search(r"\d+ captions generated by \d workers \(ray\), 1 lost", again.written)

    made = captions(tmp_path / "home")
    assert len(made) == len(set(made)) == IMAGES, "nothing is lost, and nothing is written twice"
    assert set(kept) <= set(made)
    alone = Command(here, head, tmp_path / "alone", "caption", "demo", "--set", "scale.runner=threads")
    assert alone.end() == 0, alone.written
    assert table(tmp_path / "home") == table(tmp_path / "alone")


def test_features_and_embeddings_are_those_of_one_process(network, nodes, tmp_path):
    head, here, other = nodes
    home, out = tmp_path / "home", tmp_path / "one.parquet"
    small = ["--set", f"evaluate.batch_size={BATCH}"]
    alone = Command(here, head, home, "evaluate", "demo_baseline", "--set", "scale.runner=threads", *small)
    assert alone.end() == 0, alone.written
    words = ["embed", "demo_baseline", "--out", str(out)]
    assert Command(here, head, home, *words, "--set", "scale.runner=threads", *small).end() == 0
    (evaluated,) = (home / "stages" / "evaluate").iterdir()
    evaluated.rename(tmp_path / "evaluated")

    claim = claimed_part(home, evaluated.name)
    together = Command(here, head, home, "evaluate", "demo_baseline", *small)
    wait_for(lambda: "2 workers on 2 nodes" in together.written, "both workers", 400)
    other.kill()
    wait_for(lambda: f"a worker on node {other.address} is lost" in together.written, "the loss of one", 120)
    wait_for(lambda: any(Path(claim.name).parents[1].glob("*.npz")), "a part beside the claimed one", 120)
    claim.close()
    assert together.end() == 0, together.written
    for name in ("metrics.json", "rankings.parquet"):
        assert (evaluated / name).read_bytes() == (tmp_path / "evaluated" / name).read_bytes()

    start_node(network.machine(4), head, **QUICK, **TOKEN)
    gone = network.machine(3)
    start_node(gone, head, **QUICK, **TOKEN)
    gone.kill()  # Ray still lists it when the command begins
    words[-1] = str(tmp_path / "many.parquet")
    embedded = Command(here, head, home, *words, *small)
    assert embedded.end() == 0, embedded.written
    assert f"node {gone.address} has gone and is not used" in embedded.written
    assert pq.read_table(out).equals(pq.read_table(words[-1]))
    assert not list((home / "work").glob("*/*")), "parts are removed"


def test_the_head_restarts(network, nodes, tmp_path):
    head, here, other = nodes
    claims = claimed(tmp_path / "home", range(0, BUCKETS, 2))
    command = Command(here, head, tmp_path / "home", "caption", "demo")
    command.wait_for_captions(5)
    head.kill()
    for machine in (here, other):  # their raylets end without a head
        wait_for(lambda machine=machine: machine.started[0].poll() is not None, f"the end of {machine.address}", 120)
    assert command.process.poll() is None, command.written
    head = network.machine(1)
    start_head(head, **QUICK, **TOKEN)
    for machine in (here, other):
        start_node(machine, head, **QUICK, **TOKEN)
    claims.release_all()
    assert command.end() == 0, command.written
    assert "is lost; waiting until it is back" in command.written
    made = captions(tmp_path / "home")
    assert len(made) == len(set(made)) == IMAGES


def test_nodes_that_cannot_work_are_named(network, nodes, tmp_path):
    head, here, other = nodes
    home = tmp_path / "home"
    home.mkdir()
    old = tmp_path / "old" / "numpy-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    other.kill()
    other = network.machine(3)
    if other.init is not None:  # a machine with a file system of its own
        other.run("mount", "-t", "tmpfs", "none", str(home)).check_returncode()
    start_node(other, head, PYTHONPATH=f"{old.parent}:{REPO}", **QUICK, **TOKEN)
    command = Command(here, head, home, "caption", "demo")
    assert command.end() == 1
    assert re.search(rf"node {other.address}: .*numpy 1.0 instead of", command.written), command.written
    if other.init is not None:
        assert f"node {other.address}: the artifact root {home} does not exist there" in command.written
    assert f"node {here.address}" not in command.written
    assert captions(home) == []


class OneNode:
    """A cluster of one node, as far as `Pool` asks Ray; every check of the node ends without an answer.

    listed: how often Ray still lists the node.
    """

    class exceptions:  # noqa: N801
        class RayError(Exception):
            """As in Ray."""

    def __init__(self, listed: int) -> None:
        self.listed, self.checks = listed, 0

    def nodes(self) -> list[dict[str, object]]:
        self.listed -= 1
        node = {"NodeID": 56 * "0", "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 1}}
        return [{**node, "Alive": self.listed >= 0}]

    def remote(self, **options: object) -> object:
        return lambda function: SimpleNamespace(remote=self._check)

    def _check(self, probe: Probe) -> int:
        self.checks += 1
        return self.checks

    def wait(self, refs: list[int], **options: object) -> tuple[list[int], list[int]]:
        return refs, []

    def get(self, ref: int) -> object:
        raise self.exceptions.RayError("the worker\ndied")


@pytest.mark.usefixtures("network")
def test_a_node_that_lives_is_asked_again(tmp_path, capfd):
    def progress(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    def pool(ray: OneNode) -> Pool:
        job = CaptionJob(home=str(tmp_path), images={}, config=build_recipe("demo", ["caption.device=cpu"]).caption)
        return Pool(ray, job, Probe("", "", {}, {}), most=0, progress=progress)

    lives, gone = OneNode(listed=9), OneNode(listed=2)
    with pytest.raises(
        ConfigError, match=r"node 10\.0\.0\.2: the check failed 3 times, the last time with: the worker died"
    ):
        pool(lives).run()
    assert lives.checks == 3
    with pytest.raises(KeyboardInterrupt):
        pool(gone).run()
    assert gone.checks == 2
    told = capfd.readouterr().err
    assert "node 10.0.0.2 has gone and is not used" in told
    assert "no node of the Ray cluster has a CPU: waiting for one" in told


def losses(home: Path) -> list[float]:
    """Return the loss of every step of the only training in `home`."""
    (path,) = (home / "stages" / "train").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def test_two_machines_train_as_one(network, tmp_path):
    machines = [network.machine(number) for number in (1, 2)]
    words = ["train", "demo_baseline", "--set", "scale.runner=threads", "--set", "train.device=cpu"]
    alone = Command(machines[0], machines[0], tmp_path / "alone", *words)
    assert alone.end() == 0, alone.written

    def start(rate: list[str]) -> list[Command]:
        address = f"scale.train_address={machines[0].address}:29517"
        shared = [*words, "--set", "scale.train_machines=2", "--set", address]
        return [
            Command(machine, machines[0], tmp_path / "home", *shared, "--set", f"scale.train_machine={rank}", *other)
            for rank, (machine, other) in enumerate(zip(machines, [[], rate], strict=True))
        ]

    different = start(["--set", "train.schedule.lr_clip=0.002"])
    assert [command.end() for command in different] == [1, 1], different[0].written
    for command in different:
        assert "the machines train different models: run the same command" in command.written
    together = start([])
    assert [command.end() for command in together] == [0, 0], together[0].written + together[1].written
    assert losses(tmp_path / "home") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    for machine in machines:
        machine.kill()


LOCAL = """
import subprocess, sys
from flows.workers.ray_driver import connect

ray = connect()
assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
address = ray.get_runtime_context().gcs_address
other = f"import ray; ray.init('{address}', logging_level='ERROR'); print('connected')"
for secret in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0"}):
    words = [sys.executable, "-c", other]
    found = subprocess.run(words, env={"HOME": sys.argv[1], **secret}, capture_output=True, text=True)
    print(found.stdout.strip() or found.stderr.strip().splitlines()[-1])
ray.shutdown()
"""


def test_ray_on_this_machine_alone_accepts_nobody_else(tmp_path):
    words = [sys.executable, "-c", LOCAL, str(tmp_path)]
    ended = subprocess.run(words, cwd=REPO, env=driver_environment(), capture_output=True, text=True, check=True)
    told = ended.stdout.splitlines()
    assert len(told) == 2
    assert all("Failed to connect to Ray cluster" in line for line in told), told
