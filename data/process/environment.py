"""Isolation of stages from environment variables and global switches that could change a result.

Variables that change only the speed or the order of additions (OMP_NUM_THREADS, MKL_CBWR) are left alone;
docs/scaling.md states the guarantees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

# Read by accelerate: precision, accumulation, compilation, sharding, device.
_ACCELERATE: Final = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
# Set by launchers (torchrun, MPI, job schedulers) for each of several processes. A single process that inherits them
# would wait for the others, or use another device.
_LAUNCHERS: Final = ("PET_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_COMM_", "MV2_COMM_", "ROLE_", "GROUP_")
_LAUNCHER_NAMES: Final = {
    "FORK_LAUNCHED",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
}


def own_environment(*, launched: bool = False) -> dict[str, str]:
    """Return this process's environment without the variables of accelerate and launchers.

    launched: keep the variables of launchers, because this process is one of several that work together.
    """
    hidden = _ACCELERATE if launched else _ACCELERATE + _LAUNCHERS
    names = set() if launched else _LAUNCHER_NAMES
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden) and name not in names}


@contextmanager
def hidden_variables(*, launched: bool = False) -> Iterator[None]:
    """Remove the variables that `own_environment` leaves out while the block runs."""
    kept = own_environment(launched=launched)
    hidden = {name: value for name, value in os.environ.items() if name not in kept}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def exact_float32(torch: Any) -> Iterator[None]:
    """Compute float32 exactly while the block runs, whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE or the caller has set.

    Float32 products use neither TF32 nor bf16, autocast is off, and the default dtype is float32.

    torch: the module; passed in because `data` does not import it.
    """
    backends = torch.backends
    switches = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]
    precisions, dtype = [switch.fp32_precision for switch in switches], torch.get_default_dtype()
    autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        torch.set_default_dtype(torch.float32)
        # Not `torch.autocast(enabled=False)`: an autocast nested in it would never drop its half-precision copies of
        # the weights, and training would go on computing with those of the first step.
        for device in autocast:
            torch.set_autocast_enabled(device, False)
        yield
    finally:
        for device, enabled in autocast.items():
            torch.set_autocast_enabled(device, enabled)
        torch.set_default_dtype(dtype)
        for switch, precision in zip(switches, precisions, strict=True):
            switch.fp32_precision = precision
