"""The workers of one job on a Ray cluster: one actor per GPU or CPU, on every node that is there or joins later.

The job divides itself (`flows.workers.jobs`), so a worker that is lost only has to be noticed: the others take over
what it had claimed. Ray is passed in, so that this module can be imported without it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from data.device import CPU
from data.errors import ClipScgiError, RetryableError, counted, raise_problems
from data.progress import ProgressFn
from flows.workers.jobs import Job
from flows.workers.ray_worker import Ended, Inspected, Probe, Shown, Worker, inspect

_POLL_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 5.0
_REST_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 300.0
_CHECKS: Final = 3  # of one node, if they end without an answer
_DEATHS: Final = 3  # on one node
_SHOWN: Final = 600  # characters of an error of Ray


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node with room for workers. slots: GPUs if `gpu`, else CPUs."""

    id: str
    address: str
    slots: int
    gpu: bool


@dataclass(kw_only=True)
class _Asked:
    """The check of a node. failed: how many before it ended without an answer."""

    node: Node
    answer: Any
    failed: int = 0


@dataclass(kw_only=True)
class _Running:
    node: Node
    actor: Any
    ended: Any
    asked: Any
    shown: Shown | None = None
    """None until the actor has started."""


@dataclass(kw_only=True)
class PoolOutcome:
    """The outcome of a job. done: images done by workers that ended in order. workers, lost: how many there were."""

    done: int = 0
    workers: int = 0
    lost: int = 0
    nodes: set[str] = field(default_factory=set)


class Pool:
    """The workers of `job`. most: how many at the same time at most; 0: as many as the cluster has room for."""

    def __init__(self, ray: Any, job: Job, probe: Probe, *, most: int, progress: ProgressFn) -> None:
        self._ray, self._job, self._probe, self._most, self._progress = ray, job, probe, most, progress
        self._text = job.model_dump_json()
        self._refused: set[str] = set()
        self._accepted: set[str] = set()
        self._asked: dict[str, _Asked] = {}
        self._running: list[_Running] = []
        self._deaths: Counter[str] = Counter()
        self._latest = Shown(0, 0, "")
        self.outcome = PoolOutcome()

    def run(self) -> PoolOutcome:
        """Work until a worker finds that nothing is left, then end the others.

        Raises ConfigError if a node that is there at the beginning cannot work, and the first error of a worker.
        """
        self._check_first()
        try:
            finished = False
            while not finished:
                self._use_nodes()
                finished = self._collect(_POLL_SECONDS)
                self._show()
            end = time.monotonic() + _REST_SECONDS
            while any(worker.shown for worker in self._running) and time.monotonic() < end:
                self._collect(_POLL_SECONDS)
        except BaseException:
            self.stop()
            raise
        self._kill()
        return self.outcome

    def stop(self) -> None:
        """Let every worker save what it has, then end it."""
        for worker in self._running:
            worker.actor.stop.remote()
        started = [worker.ended for worker in self._running if worker.shown]
        if started:
            self._ray.wait(started, num_returns=len(started), timeout=_STOP_SECONDS)
        self._kill()

    def _kill(self) -> None:
        for worker in self._running:
            self._ray.kill(worker.actor)
        self._running = []

    def nodes(self) -> list[Node]:
        """Return the living nodes that have room for workers of the job."""
        living = [node for node in self._ray.nodes() if node["Alive"]]
        any_gpu = any(node["Resources"].get("GPU", 0) >= 1 for node in living)
        gpu = self._job.device != CPU and (any_gpu or self._job.device != "auto")
        kind = "GPU" if gpu else "CPU"
        found = [
            Node(id=node["NodeID"], address=node["NodeManagerAddress"], slots=slots, gpu=gpu)
            for node in living
            if (slots := int(node["Resources"].get(kind, 0)))
        ]
        return sorted(found, key=lambda node: node.address)

    def _check_first(self) -> None:
        """Check all nodes; raise every problem. Without any node with room, the run waits for one."""
        self._ask(self.nodes())
        found: list[tuple[Node, Inspected]] = []
        end = time.monotonic() + _CHECK_SECONDS
        while self._asked and time.monotonic() < end:
            found += self._answers(_POLL_SECONDS)
        late = Inspected([f"its check did not end within {_CHECK_SECONDS:.0f} seconds"], [])
        found += [(asked.node, late) for asked in self._asked.values()]
        problems = [f"node {node.address}: {problem}" for node, answer in found for problem in answer.problems]
        raise_problems("the Ray cluster cannot run this", sorted(problems))
        for node, answer in found:
            self._accept(node, answer)
        if not found:
            kind = "CPU" if self._job.device in ("auto", CPU) else "GPU"
            _say(f"no node of the Ray cluster has a {kind}: waiting for one (`ray start --address=HOST:6379`)")

    def _ask(self, nodes: list[Node]) -> None:
        """Begin the checks of the nodes that are new."""
        known = self._refused | self._accepted | self._asked.keys()
        for node in nodes:
            if node.id not in known:
                self._asked[node.id] = _Asked(node=node, answer=self._inspected(node))

    def _answers(self, seconds: float) -> list[tuple[Node, Inspected]]:
        """Return the answers of the nodes whose checks have ended; wait up to `seconds` for the first.

        Ray lists a node for up to a minute after it has gone, and its check fails before. Such a node is left out with
        a notice; one that is still there is asked again.
        """
        asked = {it.answer: it for it in self._asked.values()}
        ready = self._ray.wait(list(asked), num_returns=1, timeout=seconds)[0] if asked else []
        found = []
        for it in map(asked.__getitem__, ready):
            del self._asked[it.node.id]
            try:
                found.append((it.node, self._ray.get(it.answer)))
            except self._ray.exceptions.RayError as error:
                found += self._without_answer(it, error)
        return found

    def _without_answer(self, asked: _Asked, error: Exception) -> list[tuple[Node, Inspected]]:
        """Ask a node again that lives, up to `_CHECKS` times; then return the reason as its answer."""
        node = asked.node
        if all(other.id != node.id for other in self.nodes()):
            _say(f"node {node.address} has gone and is not used")
        elif asked.failed + 1 < _CHECKS:
            self._asked[node.id] = _Asked(node=node, answer=self._inspected(node), failed=asked.failed + 1)
        else:
            why = " ".join(str(error).split())[:_SHOWN]
            return [(node, Inspected([f"the check failed {_CHECKS} times, the last time with: {why}"], []))]
        return []

    def _inspected(self, node: Node) -> Any:
        task = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=self._only(node))(inspect)
        return task.remote(self._probe)

    def _only(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _accept(self, node: Node, found: Inspected) -> None:
        self._accepted.add(node.id)
        for notice in found.notices:
            _say(f"node {node.address}: {notice}")

    def _use_nodes(self) -> None:
        """Check nodes that are new, and start workers where there is room."""
        nodes = self.nodes()
        self._ask(nodes)
        for node, answer in self._answers(0):
            if answer.problems:
                self._refused.add(node.id)
                _say(f"node {node.address} joined and is not used: {'; '.join(answer.problems)}")
            else:
                _say(f"node {node.address} joined")
                self._accept(node, answer)
        for node in nodes:
            if node.id in self._accepted:
                self._fill(node)

    def _fill(self, node: Node) -> None:
        here = sum(worker.node.id == node.id for worker in self._running)
        room = node.slots if not self._most else min(node.slots, here + self._most - len(self._running))
        for _ in range(room - here):
            self._start(node)

    def _start(self, node: Node) -> None:
        needs = {"num_gpus": 1, "num_cpus": 0} if node.gpu else {"num_cpus": 1}
        options = {"max_concurrency": 3, "max_restarts": 0, "scheduling_strategy": self._only(node)}
        actor = self._ray.remote(**needs, **options)(Worker).remote(self._text)
        device = "cuda:0" if node.gpu else CPU  # Ray shows an actor only the GPU that it has
        self._running.append(
            _Running(node=node, actor=actor, ended=actor.work.remote(device), asked=actor.shown.remote())
        )

    def _collect(self, seconds: float) -> bool:
        """Wait up to `seconds` for workers that end; return True if one of them found nothing left."""
        if not self._running:
            time.sleep(seconds)
            return False
        refs = {worker.ended: worker for worker in self._running}
        ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=seconds)
        finished = False
        for ref in ready:
            self._running.remove(refs[ref])
            finished |= self._end(refs[ref])
        return finished

    def _end(self, worker: _Running) -> bool:
        """Take the result of a worker that has ended; return True if it found nothing left."""
        try:
            ended: Ended = self._ray.get(worker.ended)
        except self._ray.exceptions.RayTaskError as error:
            raise ClipScgiError(f"a worker on node {worker.node.address} failed: {error}") from error
        except self._ray.exceptions.RayError as error:
            self._lost(worker, error)
            return False
        if ended.problem:
            kind = RetryableError if ended.retry else ClipScgiError
            raise kind(f"a worker on node {worker.node.address}: {ended.problem}")
        self._count(worker)
        self.outcome.done += ended.done
        return not ended.stopped

    def _count(self, worker: _Running) -> None:
        self.outcome.workers += 1
        self.outcome.nodes.add(worker.node.address)

    def _lost(self, worker: _Running, error: Exception) -> None:
        """Note a worker that died. Raises ClipScgiError if workers keep dying on a node that lives."""
        self._ray.kill(worker.actor)  # it may only be out of reach
        node, why = worker.node, " ".join(str(error).split())[:_SHOWN]
        self._deaths[node.id] += 1
        if worker.shown is not None:
            self.outcome.lost += 1
            _say(f"a worker on node {node.address} is lost; the others take over its work: {why}")
        if self._deaths[node.id] < _DEATHS or all(other.id != node.id for other in self.nodes()):
            return
        raise ClipScgiError(
            f"{counted(_DEATHS, 'worker')} died on node {node.address}, the last one with: {why}. If memory was short, "
            "give that node fewer workers (ray start --num-cpus, --num-gpus), or set a smaller batch"
        )

    def _show(self) -> None:
        """Ask every worker for its progress, and report that of the one that has seen most."""
        for worker in self._running:
            if self._ray.wait([worker.asked], timeout=0)[0]:
                try:
                    worker.shown = self._ray.get(worker.asked)
                except self._ray.exceptions.RayError:  # `_collect` notices
                    continue
                worker.asked = worker.actor.shown.remote()
        shown = [worker.shown for worker in self._running if worker.shown]
        self._latest = max([self._latest, *(it._replace(note="") for it in shown)])
        nodes = len({worker.node.id for worker in self._running if worker.shown})
        note = f"{counted(len(shown), 'worker')} on {counted(nodes, 'node')}" if shown else "waiting for workers"
        self._progress(self._latest.done, self._latest.total, note)


def _say(text: str) -> None:
    """Print a notice; the command passes it on."""
    from flows.terminal import notice_line, plain_console

    plain_console(stderr=True).print(notice_line(text), soft_wrap=True)
