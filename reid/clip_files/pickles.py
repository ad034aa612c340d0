"""Advice for weights in PyTorch's pickle format, which only `reid.convert` reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Suffixes of files from `torch.save` and TorchScript."""


def pickle_remedy(path: Path) -> str:
    """Return a message about the pickle at `path`, with the command that converts it."""
    target = path.with_suffix(".safetensors" if path.suffix != ".safetensors" else ".converted.safetensors")
    command = f"python -m reid.convert {shlex.quote(str(path))} {shlex.quote(str(target))}"
    return (
        f"{path} is a PyTorch pickle, which can run code and is never read by a run. Convert it once: `{command}`, "
        f"then set train.backbone.weights={shlex.quote(str(target))}"
    )
