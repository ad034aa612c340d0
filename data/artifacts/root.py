"""The root folder of an artifact store: whether its path can be used, and how it is created."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from data.errors import ConfigError
from data.sources.address import is_remote
from data.sources.address import shown as address

HOME_VARIABLE: Final = "CLIP_SCGI_HOME"
_REMEDY: Final = f"set --home or {HOME_VARIABLE} to a folder of your own"


def usable_root(root: Path) -> Path:
    """Return `root` as an absolute path, whether it exists or not.

    Raises ConfigError for a path that cannot exist (too long, a loop of links, the home of an unknown user) or whose
    name is not UTF-8: artifacts name their files in JSON.
    """
    if is_remote(root):
        raise ConfigError(
            f"the artifact root {address(root)} is in an object store, but artifacts are renamed, locked and mapped"
            f" into memory, which needs a folder of a POSIX file system: {_REMEDY}. Only images may be in a store"
            " (data.root)"
        )
    shown = str(root).encode(errors="replace").decode()
    try:
        found = root.expanduser().resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
        str(found).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the artifact root {shown} is not valid UTF-8: {_REMEDY}") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigError(f"the artifact root {shown} cannot be used ({reason}): {_REMEDY}") from error
    return found


def make_root(root: Path) -> None:
    """Create the folder `root` if needed. Raises ConfigError where the file system does not take folders."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # /proc
        raise ConfigError(f"the artifact root {root} cannot be created ({error.strerror}): {_REMEDY}") from error
