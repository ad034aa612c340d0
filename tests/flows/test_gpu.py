"""GPUs that a Prefect server counts: who holds a slot, and limits that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from data.errors import ConfigError
from flows.execution.gpu import LIMIT, check_limit, ensure_limit, gpu_slot

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    """A client of a server that does not have the limit."""
    with get_client(sync_client=True) as client:
        _delete_limit(client)
        yield client
        _delete_limit(client)


def _delete_limit(client: SyncPrefectClient) -> None:
    with suppress(ObjectNotFound):
        client.delete_global_concurrency_limit_by_name(LIMIT)


def test_the_gpu_is_held_by_one_at_a_time_and_the_cpu_never_waits(client, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)

    def held() -> int:
        return client.read_global_concurrency_limit_by_name(LIMIT).active_slots

    ensure_limit()
    with gpu_slot("cuda", "train.device"):
        assert held() == 1
        with gpu_slot("cpu", "train.device"):
            assert held() == 1
    assert held() == 0


def test_a_check_creates_no_limit(client):
    check_limit(4)
    with pytest.raises(ObjectNotFound):
        client.read_global_concurrency_limit_by_name(LIMIT)


def test_a_limit_that_is_too_small_is_one_message(client):
    ensure_limit(2)
    for small_enough in (1, 2):
        check_limit(small_enough)
        ensure_limit(small_enough)
    for refuse in (check_limit, ensure_limit):
        with pytest.raises(ConfigError) as caught:
            refuse(3)
        assert str(caught.value) == (
            "the run needs 3 GPUs, and the limit 'gpu' of Prefect's server has 2 slots: if the machine has enough GPUs,"
            " run `prefect gcl update gpu --limit 3`, or set scale.train_processes=2"
        )
    assert client.read_global_concurrency_limit_by_name(LIMIT).limit == 2
