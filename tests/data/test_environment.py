"""Environment variables and default config files of libraries change no result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from data.process.environment import exact_float32, hidden_variables, own_environment
from flows.execution.launch import launcher
from flows.recipes import ScaleConfig
from reid.ranking.metrics import evaluate_ranking
from reid.tasks.build import build_task
from reid.training.metrics_log import METRICS_FILE
from reid.training.trainer import fit
from tests.helpers.data_trees import settle
from tests.helpers.places import REPO
from tests.helpers.programs import CLIP_SCGI, run_module
from tests.helpers.rankings import gaussian_world
from tests.helpers.reid_worlds import small_config, training_set
from tests.helpers.small_runs import FINISHED_RUN

ACCELERATE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "aot_eager",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_USE_CPU": "true",
    "FSDP_OFFLOAD_PARAMS": "true",
}
# As set by a job scheduler or a container. The other process does not exist, and nothing listens at the address.
LAUNCHER = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "9",
    "PMI_SIZE": "2",
    "OMPI_COMM_WORLD_SIZE": "2",
    "FORK_LAUNCHED": "1",
}
TORCH = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
PREFECT = {
    "PREFECT_TASKS_DEFAULT_RETRIES": "7",
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "1000",
    "PREFECT_TASKS_REFRESH_CACHE": "true",
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
    "PREFECT_TASKS_DISABLE_CACHING": "true",
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "false",
    "PREFECT_FLOWS_DEFAULT_RETRIES": "5",
    "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "1000",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "pickle",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
}
DEFAULT_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 3
num_processes: 5
machine_rank: 2
main_process_ip: 10.1.2.3
main_process_port: 1234
gpu_ids: "3"
use_cpu: true
enable_cpu_affinity: true
dynamo_config: {dynamo_backend: inductor}
fsdp_config: {fsdp_offload_params: true}
"""


def clean():
    """Return this process's environment without any variable of the kinds above."""
    foreign = ("PREFECT_", "TORCH_", "NVIDIA_")
    kept = {name: value for name, value in own_environment().items() if not name.startswith(foreign)}
    return kept | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def hostile(tmp_path):
    """Return an environment with all of them, and with a config file that accelerate takes for the user's."""
    home = tmp_path / "huggingface"
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate" / "default_config.yaml").write_text(DEFAULT_CONFIG)
    return {**clean(), **ACCELERATE, **LAUNCHER, **TORCH, **PREFECT, "HF_HOME": str(home)}


def child(what, folder, environment):
    done = run_module("tests.helpers.environment_child", what, str(folder), environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.soak  # `test_a_pipeline_caches_and_makes_equal_artifacts` trains in the same environment
def test_a_training_is_the_same_to_the_bit(tmp_path, hostile):
    expected = child("train", tmp_path / "clean", clean())
    assert len(expected["steps"]) == 4
    assert child("train", tmp_path / "hostile", hostile) == expected


def test_flows_and_tasks_set_everything_that_prefect_would_look_up(tmp_path, hostile):
    expected = child("prefect", tmp_path, clean())
    assert set(expected) >= {"caption-and-train", "index", "stage", "caption-worker"}
    assert child("prefect", tmp_path, hostile) == expected


@pytest.mark.timeout(1300)
def test_a_pipeline_caches_and_makes_equal_artifacts(finished, new_database, tmp_path, hostile):
    """What this process has made without them is found, and made again to the bit."""
    home = shutil.copytree(finished[0], tmp_path / "home")
    settle()
    new_database(home)
    (folder,) = (home / "stages" / "train").iterdir()
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    settings = [word for setting in FINISHED_RUN for word in ("--set", setting)]
    words = ["run", "demo", *settings, "--until", "evaluate", "--home", str(home)]
    done = run_module(CLIP_SCGI, *words, environment=hostile, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = dict(re.findall(r"(\w+) +(ran|cached) ", done.stderr))
    assert stages == {"index": "cached", "caption": "cached", "audit": "cached", "train": "ran", "evaluate": "cached"}
    assert (folder / "model.safetensors").read_bytes() == weights


# One by one, in this process --------------------------------------------------------------------------


@contextmanager
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _coarse():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"


CALLERS = {
    "default type": _double,
    "bf16 in float32 products": _coarse,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def _losses(folder):
    data = training_set(16)
    config = small_config(batch={"identities": 2, "images": 2}, schedule={"epochs": 1}, checkpoint_every=0)
    fit(build_task(config, identities=4), data, config, folder=folder)
    return [json.loads(line)["loss"] for line in (folder / METRICS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def losses(one_thread, module_folder):
    return _losses(module_folder("clean"))


@pytest.mark.parametrize("name", sorted(ACCELERATE))
def test_each_variable_of_accelerate(name, losses, tmp_path, monkeypatch):
    monkeypatch.setenv(name, ACCELERATE[name])
    assert _losses(tmp_path) == losses
    assert os.environ[name] == ACCELERATE[name], "the caller's environment is left as it was"


@pytest.mark.parametrize("name", sorted(CALLERS))
def test_what_the_caller_has_set_in_torch(name, losses, tmp_path):
    world = gaussian_world(q=20, g=90, people=6)
    expected = evaluate_ranking(*world)
    with CALLERS[name]():
        assert _losses(tmp_path) == losses
        got = evaluate_ranking(*world)
    assert got.top_score.tolist() == expected.top_score.tolist()


def _fail_inside(switches):
    with exact_float32(torch):
        assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3
        assert torch.get_default_dtype() == torch.float32
        raise KeyError


def test_settings_of_torch_are_put_back_after_an_error_too():
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
    with _double(), _coarse():
        before = [switch.fp32_precision for switch in switches]
        with pytest.raises(KeyError):
            _fail_inside(switches)
        assert [switch.fp32_precision for switch in switches] == before
        assert torch.get_default_dtype() == torch.float64


def test_blocks_of_several_threads_end_in_any_order():
    switches = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    first, second = exact_float32(torch), exact_float32(torch)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert [switch.fp32_precision for switch in switches] == ["ieee"] * 3, "the other thread computes still"
        other.submit(second.__exit__, None, None, None).result()
    assert [switch.fp32_precision for switch in switches] == before


def test_launchers_variables_count_only_where_several_processes_were_started(monkeypatch):
    for name, value in {**ACCELERATE, **LAUNCHER, "CUDA_VISIBLE_DEVICES": "1"}.items():
        monkeypatch.setenv(name, value)
    with hidden_variables():
        assert not {*ACCELERATE, *LAUNCHER} & set(os.environ)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    with hidden_variables(launched=True):
        assert set(LAUNCHER) <= set(os.environ)
        assert not set(ACCELERATE) & set(os.environ)
    assert {**ACCELERATE, **LAUNCHER}.items() <= dict(os.environ).items()


def test_the_launcher_reads_no_config_file_but_its_own(tmp_path, hostile):
    (tmp_path / "own").mkdir()
    words = launcher(tmp_path / "own", ScaleConfig(train_processes=2))
    script = (
        "import json, sys\n"
        "from accelerate.commands.launch import _validate_launch_command, launch_command_parser\n"
        "args, _, _ = _validate_launch_command(launch_command_parser().parse_args(sys.argv[1:]))\n"
        "print(json.dumps({**vars(args), 'nondefault': None}, default=str))\n"
    )
    command = [sys.executable, "-c", script, *words[1:], "train.py"]
    told = []
    for home in (tmp_path / "none", hostile["HF_HOME"]):
        environment = {**clean(), "HF_HOME": str(home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        told.append(json.loads(done.stdout.splitlines()[-1]))
    assert told[0] == told[1]
    wanted = {"num_processes": 2, "num_machines": 1, "multi_gpu": True, "use_fsdp": False, "main_process_port": 0}
    wanted |= {"mixed_precision": "no", "dynamo_backend": "no", "gpu_ids": "all", "enable_cpu_affinity": False}
    assert {name: told[1][name] for name in wanted} == wanted
