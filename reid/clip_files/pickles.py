"""What to do about weights in PyTorch's pickle format, which nothing but `reid.convert` reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files that `torch.save` and TorchScript write."""


def pickle_remedy(path: Path) -> str:
    """Return what the file at `path` is and the one command that converts it."""
    target = path.with_suffix(".safetensors" if path.suffix != ".safetensors" else ".converted.safetensors")
    command = f"python -m reid.convert {shlex.quote(str(path))} {shlex.quote(str(target))}"
    return (
        f"{path} is a PyTorch pickle, which can run code and is never read by a run. Convert it once: `{command}`, "
        f"then set train.backbone.weights={shlex.quote(str(target))}"
    )
