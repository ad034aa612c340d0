"""On a GPU, features are added up in a fixed order; what was set before is set again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from data.process.fixed_order import fixed_order
from reid.inputs.embed import embed

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv(VARIABLE, raising=False)


def state():
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    return torch.are_deterministic_algorithms_enabled(), warns, filling, os.environ.get(VARIABLE)


FIXED = (True, True, False, ":4096:8")


def fail_inside():
    with fixed_order(torch), fixed_order(torch):
        assert state() == FIXED
        raise KeyError


def test_the_order_is_fixed_inside_and_everything_is_put_back_after_an_error(gpu):
    before = state()
    with pytest.raises(KeyError):
        fail_inside()
    assert state() == before == (False, False, True, None)


def test_what_a_caller_has_set_is_put_back(gpu, monkeypatch):
    monkeypatch.setenv(VARIABLE, ":0:0")
    torch.use_deterministic_algorithms(True)
    try:
        with fixed_order(torch):
            assert state() == FIXED
        assert state() == (True, False, True, ":0:0")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_fixed_order_of_the_callers_is_kept(gpu, monkeypatch):
    monkeypatch.setenv(VARIABLE, ":16:8")
    with fixed_order(torch):
        assert state() == (*FIXED[:3], ":16:8")
    assert os.environ[VARIABLE] == ":16:8"


def test_blocks_of_several_threads_end_in_any_order(gpu):
    first, second = fixed_order(torch), fixed_order(torch)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert state() == FIXED, "the other thread computes still"
        other.submit(second.__exit__, None, None, None).result()
    assert state() == (False, False, True, None)


def test_without_a_gpu_nothing_changes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = state()
    with fixed_order(torch):
        assert state() == before


def test_features_are_computed_in_a_fixed_order(gpu):
    seen = []

    def encode(images):
        seen.append(state())
        return images.flatten(1)

    pixels = np.zeros((3, 4, 2, 3), np.uint8)
    embed(encode, pixels, np.arange(3), batch_size=2, device="cpu", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert seen == [FIXED] * 2
