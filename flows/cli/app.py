"""The console script ``clip-scgi``: parse, call one command, turn an expected error into one clear message."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import Final

from flows import interrupts

_CLOSED: Final = "give it other permissions, or name a folder of your own (--home is the one of the results)"
_FULL: Final = "free some space and run the same command again; what is finished is kept"
_REMEDIES: Final = {
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: _CLOSED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOTDIR: "a file stands where a folder is wanted: remove it, or name another folder",
}
"""What a person can do about an error of the file system; another one is a fault of this program."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command sets `handler`."""
    from importlib.metadata import version

    from flows.cli import deploy as commands_deploy
    from flows.cli import run as commands

    parser = argparse.ArgumentParser(
        prog="clip-scgi",
        description="Person re-identification supervised by language: caption, train, evaluate and report.",
    )
    parser.add_argument("--version", action="version", version=f"clip-scgi {version('clip-scgi')}")
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parsers(group)
    commands_deploy.add_parsers(group)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; on an unknown argument exit with the usage.

    argparse leaves over an optional positional that comes after options (before Python 3.12.7); a command names it in
    `late_positional`.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    late = getattr(arguments, "late_positional", "")
    if len(rest) == 1 and not rest[0].startswith("-") and late and getattr(arguments, late) is None:
        setattr(arguments, late, rest[0])
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a person has to act, 130 stopped by a signal."""
    # Imports of other modules come later, because a signal may arrive while they load.
    with interrupts.watched():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    from data.errors import ClipScgiError, RetryableError

    arguments = parse(argv)
    try:
        return int(arguments.handler(arguments))
    except (ClipScgiError, RetryableError) as error:
        if not interrupts.stopping():
            sys.stderr.write(f"clip-scgi: {error}\n")
        return 1
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None or interrupts.stopping():
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"clip-scgi: {where}{error.strerror}; {remedy}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
