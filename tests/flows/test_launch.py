"""Training on several machines: what is written for the launcher, and what is refused before it starts."""

from __future__ import annotations

import json
import socket

import pytest

from data.errors import ConfigError
from flows.execution.launch import _network, launcher
from flows.recipes import ScaleConfig, build_recipe


def machines(**changes) -> ScaleConfig:
    values = {"train_machines": 2, "train_processes": 3, "train_address": "127.0.0.1:29518", **changes}
    return ScaleConfig(**values)


def test_the_launcher_is_told_all_processes_and_this_machine(tmp_path):
    launcher(tmp_path, machines(train_machine=1))
    told = json.loads((tmp_path / "accelerate.json").read_text())
    assert (told["num_machines"], told["machine_rank"], told["num_processes"]) == (2, 1, 6)
    assert (told["main_process_ip"], told["main_process_port"]) == ("127.0.0.1", 29518)
    launcher(tmp_path, ScaleConfig(train_processes=2))
    told = json.loads((tmp_path / "accelerate.json").read_text())
    assert (told["num_machines"], told["num_processes"], told["main_process_port"]) == (1, 2, 0)


def test_gloo_and_nccl_use_the_network_of_the_address():
    assert _network(machines()) == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert _network(machines(train_machine=1))["GLOO_SOCKET_IFNAME"] == "lo"
    assert _network(ScaleConfig(train_processes=4)) == {}


def test_an_address_that_machine_0_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"^scale.train_address=no-such-host.invalid:29500 cannot be used on this"):
        _network(machines(train_address="no-such-host.invalid:29500"))
    with pytest.raises(ConfigError, match="cannot be reached from here"):
        _network(machines(train_address="no-such-host.invalid:29500", train_machine=1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="with a free port"):
            _network(machines(train_address=taken))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["train_machine=1"], "scale.train_machine: machines are numbered from 0: set 0 to 0"),
        (["train_machines=2"], "scale.train_address: set HOST:PORT of machine 0, such as 10.0.0.1:29500"),
        (["train_machines=2", "train_address=10.0.0.1"], "scale.train_address: set HOST:PORT of machine 0"),
    ],
)
def test_machines_that_cannot_meet_are_refused(settings, problem):
    with pytest.raises(ConfigError) as caught:
        build_recipe("demo", [f"scale.{setting}" for setting in settings])
    assert problem in str(caught.value)
