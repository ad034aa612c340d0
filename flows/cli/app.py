"""The console script ``clip-scgi``: run one command and turn an expected error into one clear message."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Final

from flows import interrupts

_CLOSED: Final = "change its permissions, or name a folder of your own (--home is the folder of the results)"
_FULL: Final = "free some space and run the same command again; finished work is kept"
_REMEDIES: Final = {
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: _CLOSED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOTDIR: "this path needs a folder where a file exists: remove the file, or name another folder",
}
"""What a user can do about an error of the file system; any other one is a fault of this program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: a user has to act. 2: the command line is wrong. 130: stopped by a signal.
    """
    # Imports of other modules come later, because a signal may arrive while they load.
    with interrupts.watched():
        from data.errors import ClipScgiError
        from flows.cli.commands import app

        problem = _empty_argument(sys.argv[1:] if argv is None else argv)
        if problem is not None:
            return _failed(problem, status=2)
        try:
            app(argv, prog_name="clip-scgi")  # ends with SystemExit
        except ClipScgiError as error:
            return _failed(str(error))
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0)
            if remedy is None or interrupts.stopping():
                raise
            where = f"{error.filename}: " if error.filename else ""
            return _failed(f"{where}{error.strerror}; {remedy}")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def _empty_argument(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with an empty argument, such as an unset variable of a shell; None if there is none.

    As a path, an empty text would be the working directory.
    """
    remedy = "give a value, or leave the option out (. is the working directory)"
    for number, (former, argument) in enumerate(zip(["", *arguments], arguments, strict=False), start=1):
        if not argument:
            where = f" (after {former})" if former else ""
            return f"argument {number}{where} is empty; {remedy}"
        if argument.startswith("--") and argument.endswith("=") and argument.count("=") == 1:
            return f"{argument} is empty; {remedy}"
    return None


def _failed(message: str, status: int = 1) -> int:
    """Write one error message, unless the command is being stopped, and return the exit status."""
    if not interrupts.stopping():
        sys.stderr.write(f"clip-scgi: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
