"""Isolation of stages from environment variables and global switches that could change a result.

Variables that change only the speed or the order of additions (OMP_NUM_THREADS, MKL_CBWR) are left alone;
docs/scaling.md states the guarantees.
"""

from __future__ import annotations

import os
import threading
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


class _Float32Switches:
    """The switches of torch that decide how float32 is computed. They are global, so blocks in several threads share
    them: the first block sets them, and the last one to end restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before: list[str] = []
        self._dtype: Any = None

    def enter(self, torch: Any) -> None:
        """Compute float32 exactly from here on."""
        with self._lock:
            if not self._blocks:
                self._before = [switch.fp32_precision for switch in _switches(torch)]
                self._dtype = torch.get_default_dtype()
            self._blocks += 1
            for switch in _switches(torch):
                switch.fp32_precision = "ieee"
            torch.set_default_dtype(torch.float32)

    def leave(self, torch: Any) -> None:
        """Restore what was set before the first block, if no other block runs."""
        with self._lock:
            self._blocks -= 1
            if self._blocks:
                return
            torch.set_default_dtype(self._dtype)
            for switch, precision in zip(_switches(torch), self._before, strict=True):
                switch.fp32_precision = precision


def _switches(torch: Any) -> list[Any]:
    backends = torch.backends
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]


_SWITCHES: Final = _Float32Switches()


@contextmanager
def exact_float32(torch: Any) -> Iterator[None]:
    """Compute float32 exactly while the block runs, whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE or the caller has set.

    Float32 products use neither TF32 nor bf16, autocast is off, and the default dtype is float32. Blocks may be nested,
    and several threads may run blocks at the same time.

    torch: the module; passed in because `data` does not import it.
    """
    # Autocast belongs to the thread, the other switches to the process.
    autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    _SWITCHES.enter(torch)
    try:
        # Not `torch.autocast(enabled=False)`: an autocast nested in it would never drop its half-precision copies of
        # the weights, and training would go on computing with those of the first step.
        for device in autocast:
            torch.set_autocast_enabled(device, False)
        yield
    finally:
        for device, enabled in autocast.items():
            torch.set_autocast_enabled(device, enabled)
        _SWITCHES.leave(torch)
