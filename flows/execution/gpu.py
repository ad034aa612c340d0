"""One GPU, one user: stages on CUDA hold a slot of a named limit of the Prefect server; stages on the CPU never wait.

The limit is called ``gpu`` and has one slot. A site with more GPUs raises it: ``prefect gcl update gpu --limit 4``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from data.device import CPU, PROCESSES_KEY, resolve_device
from data.errors import ConfigError

if TYPE_CHECKING:  # a run without a GPU does not load Prefect's client for this module
    from prefect.client.orchestration import SyncPrefectClient

LIMIT: Final = "gpu"
_LEASE_SECONDS: Final = 300.0
_CONFLICT: Final = 409
_LOG = logging.getLogger(__name__)


def uses_gpu(device: str, key: str) -> bool:
    """Return True if a stage set to `device` (auto, cpu, cuda or cuda:N) will run on a GPU of this machine.

    key: the full key of the setting. Raises ConfigError if `device` names a GPU that does not exist.
    """
    if device == CPU:  # before torch is loaded
        return False
    import torch

    return resolve_device(device, torch.cuda, key) != CPU


@contextmanager
def gpu_slot(device: str, key: str, slots: int = 1) -> Iterator[None]:
    """Hold `slots` GPUs while the block runs, after waiting until they are free; do nothing if `device` is the CPU.

    A process that dies gives its slots back when their lease ends, after at most five minutes. A server that restarts
    meanwhile does not stop the work: the lease is renewed when it is back. Raises ConfigError if the limit has fewer
    slots than wanted (that wait would never end), or if `device`, the value of the setting `key`, does not exist.
    """
    if not uses_gpu(device, key):
        yield
        return
    from prefect.concurrency.sync import concurrency

    ensure_limit(slots)
    _LOG.info("waiting for %d slots of the limit %r", slots, LIMIT)
    with concurrency(
        LIMIT, occupy=slots, strict=True, lease_duration=_LEASE_SECONDS, raise_on_lease_renewal_failure=False
    ):
        yield


def ensure_limit(slots: int = 1) -> None:
    """Create the limit with `slots` slots unless the server has it already; a value set by a person stays.

    Raises ConfigError if that value is smaller than `slots`.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        have = _slots(client)
        if have is None:
            _create(client, slots)
    _check(have, slots)


def check_limit(slots: int) -> None:
    """Raise ConfigError if the server has the limit, with fewer than `slots` slots."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _check(_slots(client), slots)


def _slots(client: SyncPrefectClient) -> int | None:
    """Return how many slots the limit has, or None if the server does not have the limit."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_global_concurrency_limit_by_name(LIMIT).limit
    except ObjectNotFound:
        return None


def _create(client: SyncPrefectClient, slots: int) -> None:
    """Create the limit, unless another process creates it at the same moment."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

    try:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=slots))
    except ObjectAlreadyExists:
        _LOG.debug("another process has just created the limit %r", LIMIT)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != _CONFLICT:
            raise
        _LOG.debug("another process has just created the limit %r", LIMIT)


def _check(have: int | None, slots: int) -> None:
    if have is not None and have < slots:
        fewer = f", or set {PROCESSES_KEY}={have}" if have else ""
        raise ConfigError(
            f"the run needs {slots} GPUs, and the limit {LIMIT!r} of Prefect's server has {have} slots: if the machine"
            f" has enough GPUs, run `prefect gcl update {LIMIT} --limit {slots}`{fewer}"
        )
