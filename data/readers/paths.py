"""Checks of the paths that files list: they must be text, stay inside the root, and name a file."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from data.errors import RejectedRow
from data.files import inside
from data.sources.address import is_remote, scheme_of
from data.sources.places import is_dir, is_file

_VERSION: Final = "?versionId="
# Paths that are normal as they are: most of those of a large dataset.
_PLAIN: Final = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)


def printable(text: str) -> str:
    """Return `text` with bytes that are not UTF-8 as escapes, so that it can be stored and shown."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, which JSON can contain
        return text.encode("utf-8", "backslashreplace").decode()


class PathGate:
    """Checks that paths stay inside `root`, as `data.files.inside` does, but fast for many paths.

    Each folder is resolved once, so that 200,000 rows cost 200,000 `lstat` calls instead of a million.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._is_remote = is_remote(root)
        self._refused: dict[str, str] = {}  # folder -> reason why its files are refused, or ""

    def admit(self, relative: str) -> str:
        """Return `relative`, normalized; raises RejectedRow unless it is a file, or a member of a shard, in the root.

        The reason is one of `PATH_DETAILS`.
        """
        path = normal_path(relative)
        refused = self.refusal(path.rpartition("/")[0])
        if refused:
            raise RejectedRow(refused)
        if self._is_remote:
            return self._admit_object(path)
        try:
            mode = os.lstat(f"{self.root}/{path}").st_mode
            if stat.S_ISLNK(mode):
                mode = inside(self.root, path).stat().st_mode
        except NotADirectoryError as error:
            if is_file(self.root / path):  # a member of a tar shard
                return path
            raise RejectedRow("missing") from error
        except FileNotFoundError as error:
            raise RejectedRow("missing") from error
        except OSError as error:
            raise RejectedRow("unreadable") from error
        if not stat.S_ISREG(mode):
            raise RejectedRow("not_a_file")
        return path

    def _admit_object(self, path: str) -> str:
        if _VERSION in path and scheme_of(self.root) == "s3":  # s3fs would read another object
            raise RejectedRow("bad_path")
        if is_file(f"{self.root}/{path}"):
            return path
        raise RejectedRow("not_a_file" if is_dir(self.root / path) else "missing")

    def refusal(self, folder: str) -> str:
        """Return the reason why files in `folder`, relative to the root, are refused, or ""."""
        if folder not in self._refused:
            try:
                inside(self.root, folder)
                self._refused[folder] = ""
            except RejectedRow as error:
                self._refused[folder] = error.reason
        return self._refused[folder]


def normal_path(relative: str) -> str:
    """Return `relative`, normalized; raises RejectedRow (``bad_path``, ``outside_root``) unless it stays inside."""
    if _PLAIN.fullmatch(relative):
        return relative
    if "\0" in relative or printable(relative) != relative:  # bytes that are not UTF-8 cannot be stored
        raise RejectedRow("bad_path")
    if relative.startswith("/") or ".." in relative.split("/"):
        raise RejectedRow("outside_root")
    if "\\" in relative:
        raise RejectedRow("bad_path")
    path = str(PurePosixPath(relative))
    if path == ".":
        raise RejectedRow("bad_path")
    return path


PATH_DETAILS: Final[dict[str, str]] = {
    "bad_path": "empty, or with characters that are not allowed; separate folders by /",
    "outside_root": "the path leaves the dataset's folder (absolute, .. or a link to the outside)",
    "missing": "the file does not exist",
    "not_a_file": "a folder or a device",
    "unreadable": "cannot be read; check its permissions",
}
"""Reason of `PathGate.admit` -> sentence for people; part of the index fingerprint, see `Rejected`."""
