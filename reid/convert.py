"""Convert PyTorch weights (.pt, .pth, .bin) to safetensors, once and by hand.

python -m reid.convert IN.pt OUT.safetensors

No other module reads pickles, and none imports this one. It reads tensors only: `torch.load` with weights_only refuses
everything else, and OpenAI's archives are TorchScript, which PyTorch reads without Python's pickle.
"""

from __future__ import annotations

import pickle
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from data.errors import ClipScgiError, WeightsError, counted
from data.files import atomic_path
from data.weights import few, file_problem

# Keys under which training scripts store the weights in a checkpoint.
_NESTED: Final = ("state_dict", "model_state_dict", "model")


def convert(source: Path, target: Path) -> int:
    """Write the tensors of the PyTorch file `source` to the safetensors file `target`, and return their number.

    Names and dtypes do not change.

    Raises:
        WeightsError: `source` is missing, is not a PyTorch file, or contains more than tensors; or `target` exists.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target} must end in .safetensors")
    if target.exists():
        raise WeightsError(f"{target} already exists: choose another name")
    problem = file_problem(source)
    if problem is not None:
        raise WeightsError(f"{source} {problem}")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _tensors(source).items()}
    with atomic_path(target) as temporary:
        save_file(tensors, temporary)
    return len(tensors)


def _tensors(source: Path) -> dict[str, Tensor]:
    content = _torchscript(source) if _is_torchscript(source) else _load(source)
    nested = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), content)
    tensors = {str(name): value for name, value in nested.items() if isinstance(value, Tensor)}
    others = [str(name) for name, value in nested.items() if not isinstance(value, Tensor)]
    if others or not tensors:
        raise WeightsError(
            f"{source} must be a mapping of names to tensors and nothing else, but has {few(others) or 'no tensor'}: "
            "load it where it was made and save only `model.state_dict()`"
        )
    return tensors


def _is_torchscript(source: Path) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(name.split("/")[1:2] == ["constants.pkl"] for name in archive.namelist())


def _torchscript(source: Path) -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated for new models, but OpenAI's use it
        try:
            return dict(torch.jit.load(str(source), map_location="cpu").state_dict())
        except RuntimeError as error:
            raise WeightsError(f"{source} cannot be read as a TorchScript archive: {_first_line(error)}") from error


def _load(source: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{source} contains more than tensors, and the rest is not read because it can run code "
            f"({_first_line(error)}): load it where it was made and save only `model.state_dict()`"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{source} cannot be read as PyTorch weights: {_first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{source} contains a {type(content).__name__}; expected a mapping of names to tensors")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@_app.command()
def _command(
    source: Annotated[Path, typer.Argument(metavar="IN.pt", help="A .pt, .pth or .bin file from a trusted source.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write; it must not exist.")],
) -> None:
    """Convert PyTorch weights to safetensors.

    Example: python -m reid.convert ViT-B-16.pt ViT-B-16.safetensors
    """
    try:
        count = convert(source, target)
    except ClipScgiError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{counted(count, 'tensor')} written; set train.backbone.weights={shlex.quote(str(target))}")


if __name__ == "__main__":
    _app(prog_name="python -m reid.convert")
