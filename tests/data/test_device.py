"""Devices: one validated setting, one resolver, and every stage on exactly the named device."""

from __future__ import annotations

import ast
import re

import pytest
import torch

from captioning.config import CaptionConfig
from captioning.engines.llava_load import pick_device
from data.config import Config, build_config
from data.device import cuda_devices, devices_together, resolve_device
from data.errors import ConfigError
from flows.execution.gpu import uses_gpu
from flows.recipes import build_recipe
from flows.workers.local import device_of
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.training.device import training_device
from reid.training.trainer import make_accelerator
from tests.helpers.devices import Machine
from tests.helpers.places import REPO

CONFIGS: list[type[Config]] = [CaptionConfig, TrainConfig, EvaluateConfig]
ODD = ["mps", "", "auto ", "cpu\n", 0]


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that makes torch report some number of GPUs."""

    def believe(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return believe


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:12"])
def test_a_device_is_a_setting_that_changes_no_result(config, device):
    assert build_config(config, {"device": device}, "x").device == device
    assert "device" not in config().identity()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "device",
    ["gpu", "CPU", "cuda:", "cuda:-1", "cuda:01", "cuda:١", "cuda:x", "cuda 1", "mps", "", "auto ", "cpu\n", 0],
)
def test_any_other_device_is_refused_where_it_is_set(config, device):
    with pytest.raises(ConfigError, match=r"^x: device: "):
        build_config(config, {"device": device}, "x")


def test_a_refused_device_names_its_full_key():
    with pytest.raises(ConfigError) as caught:
        build_recipe("demo", [f"{stage}.device=gpu" for stage in ("caption", "train", "evaluate")])
    for stage in ("caption", "train", "evaluate"):
        assert f"{stage}.device: must be auto, cpu, cuda or cuda:N, such as cuda:0 (given: 'gpu')" in str(caught.value)


@pytest.mark.parametrize(
    ("device", "count", "wanted"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_what_a_device_means(device, count, wanted):
    assert resolve_device(device, Machine(count), "train.device") == wanted


@pytest.mark.parametrize(
    ("device", "count", "message"),
    [
        ("cuda", 0, "train.device=cuda: this machine has no usable CUDA device; set train.device=auto or train.dev"),
        ("cuda:0", 0, "train.device=cuda:0: this machine has no usable CUDA device"),
        ("cuda:7", 2, "train.device=cuda:7: no such device; this machine has cuda:0, cuda:1: set train.device=cuda:1"),
        ("cuda:1", 1, "train.device=cuda:1: no such device; this machine has cuda:0: set train.device=cuda:0"),
    ],
)  # fmt: skip
def test_only_auto_falls_back(device, count, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve_device(device, Machine(count), "train.device")


def test_a_driver_that_does_not_work_is_no_device():
    broken = Machine(2, works=False)
    assert cuda_devices(broken) == 0
    assert resolve_device("auto", broken, "train.device") == "cpu"
    with pytest.raises(ConfigError, match="no usable CUDA device"):
        resolve_device("cuda", broken, "train.device")


def test_processes_that_train_together_have_a_device_each():
    assert devices_together("auto", 3, Machine(0), "train.device") == ("cpu",) * 3
    assert devices_together("cpu", 2, Machine(4), "train.device") == ("cpu",) * 2
    assert devices_together("cuda", 2, Machine(4), "train.device") == ("cuda:0", "cuda:1")
    assert devices_together("cuda:3", 1, Machine(4), "train.device") == ("cuda:3",)
    with pytest.raises(ConfigError, match=r"scale.train_processes=4: .* has 2; set scale.train_processes=2, or train."):
        devices_together("auto", 4, Machine(2), "train.device")
    with pytest.raises(
        ConfigError, match=r"train.device=cuda:1: 2 processes cannot share .* set train.device=cuda, or"
    ):
        devices_together("cuda:1", 2, Machine(2), "train.device")


def test_every_stage_asks_the_same_resolver(gpus):
    gpus(2)
    assert str(pick_device("cuda:1")) == str(training_device(TrainConfig(device="cuda:1"))) == "cuda:1"
    assert str(pick_device("cuda")) == str(training_device(TrainConfig(device="cuda"))) == "cuda:0"
    assert str(pick_device("auto")) == str(training_device(TrainConfig())) == "cuda:0"
    assert [uses_gpu(device, "train.device") for device in ("auto", "cuda", "cuda:1", "cpu")] == [True] * 3 + [False]
    assert [device_of("auto", worker, "train.device") for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device_of("cuda:1", worker, "train.device") for worker in range(2)] == ["cuda:1"] * 2
    assert [device_of("cpu", worker, "train.device") for worker in range(2)] == ["cpu"] * 2


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_every_stage_refuses_a_device_that_does_not_exist(gpus, device):
    gpus(0)
    with pytest.raises(ConfigError, match=f"^caption.device={device}: "):
        pick_device(device)
    with pytest.raises(ConfigError, match=f"^train.device={device}: "):
        make_accelerator(TrainConfig(device=device))
    with pytest.raises(ConfigError, match=f"^evaluate.device={device}: "):
        uses_gpu(device, "evaluate.device")


def test_without_a_gpu_auto_is_the_cpu_everywhere(gpus):
    gpus(0)
    assert str(pick_device("auto")) == str(training_device(TrainConfig())) == "cpu"
    assert make_accelerator(TrainConfig()).device == torch.device("cpu")
    assert not uses_gpu("auto", "train.device")
    assert device_of("auto", 3, "train.device") == "auto"


@pytest.mark.parametrize(("device", "wanted"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:2", "cuda:2")])
def test_training_is_on_exactly_the_device_named(gpus, device, wanted):
    make_accelerator(TrainConfig(device="cpu"))  # independent of earlier training in this process
    gpus(3)
    assert make_accelerator(TrainConfig(device=device)).device == torch.device(wanted)
    assert make_accelerator(TrainConfig(device="cpu")).device == torch.device("cpu")


def test_of_several_processes_each_trains_on_its_own_gpu(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert str(training_device(TrainConfig())) == f"cuda:{rank}"


def test_launcher_variables_do_not_choose_the_device(gpus, monkeypatch):
    gpus(2)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert str(training_device(TrainConfig())) == "cuda:0"


def test_fp16_training_needs_a_gpu(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match=r"^train.precision=fp16 needs a GPU; set train.precision=bf16"):
        make_accelerator(TrainConfig(precision="fp16"))


ASKING = {"is_available", "device_count", "get_device_capability", "is_bf16_supported"}


def cuda_questions(source: str) -> list[str]:
    """Return the expressions of a source that ask torch.cuda which devices exist; a class may ask itself."""
    tree = ast.parse(source)
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ASKING]
    found = [ast.unparse(node) for node in asked if ast.unparse(node.value) != "self"]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "torch.cuda"]
    return found + [alias.name for node in froms for alias in node.names if alias.name in ASKING]


def test_no_module_but_the_resolver_looks_for_a_gpu():
    folders = ("captioning", "reid", "flows", "data", "benchmarks")
    sources = {path.relative_to(REPO).as_posix(): path for folder in folders for path in (REPO / folder).rglob("*.py")}
    asking = {name: found for name, path in sources.items() if (found := cuda_questions(path.read_text()))}
    assert asking == {
        "data/device.py": ["cuda.is_available", "cuda.device_count"],
        "flows/preflight/plan.py": ["torch.cuda.get_device_capability"],  # of a device that the resolver has chosen
    }


def test_the_search_for_questions_finds_them():
    assert cuda_questions("import torch as t\nx = t.cuda.is_available()") == ["t.cuda.is_available"]
    assert cuda_questions("from torch.cuda import device_count as n\nn()") == ["device_count"]
    assert cuda_questions("resolve_device('auto', torch.cuda, 'x')") == []
