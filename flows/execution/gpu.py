"""One GPU, one user: stages on CUDA hold a slot of a named limit of the Prefect server; stages on the CPU never wait.

The limit is called ``gpu`` and has one slot. A site with more GPUs raises it: ``prefect gcl update gpu --limit 4``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from data.device import CPU, resolve_device
from data.errors import ConfigError

LIMIT: Final = "gpu"
_LEASE_SECONDS: Final = 300.0
_LOG = logging.getLogger(__name__)


def uses_gpu(device: str, key: str) -> bool:
    """Return True if a stage set to `device` (auto, cpu, cuda or cuda:N) will run on a GPU of this machine.

    key: the full key of the setting. Raises ConfigError where a GPU is named that does not exist.
    """
    if device == CPU:  # before torch is loaded
        return False
    import torch

    return resolve_device(device, torch.cuda, key) != CPU


@contextmanager
def gpu_slot(device: str, key: str, slots: int = 1) -> Iterator[None]:
    """Hold `slots` GPUs while the block runs, waiting for whoever has them; at once where `device` means the CPU.

    A process that dies gives the slot back when its lease ends, after at most five minutes. A server that restarts
    meanwhile does not stop the work: the lease is renewed when it is back. Raises ConfigError where the limit has
    fewer slots than wanted (that wait would never end), and where `device`, the setting `key`, does not exist.
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

    Raises ConfigError where that value is smaller than `slots`.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            have = client.read_global_concurrency_limit_by_name(LIMIT).limit
        except ObjectNotFound:
            have = slots
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=slots))
            except ObjectAlreadyExists:
                _LOG.debug("another process has just created the limit %r", LIMIT)
            except PrefectHTTPStatusError as error:
                if error.response.status_code != 409:
                    raise
                _LOG.debug("another process has just created the limit %r", LIMIT)
    if have < slots:
        raise ConfigError(
            f"the run wants {slots} GPUs and the server's limit {LIMIT!r} has {have}: with that many GPUs at hand, run"
            f" `prefect gcl update {LIMIT} --limit {slots}`"
        )
