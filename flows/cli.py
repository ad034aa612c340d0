"""The console script ``clip-scgi``: parse, call one command, turn an expected error into one clear message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flows import interrupts


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command sets `handler`."""
    from flows import commands, commands_deploy

    parser = argparse.ArgumentParser(
        prog="clip-scgi",
        description="Person re-identification supervised by language: caption, train, evaluate and report.",
    )
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parsers(group)
    commands_deploy.add_parsers(group)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a person has to act, 130 stopped by a signal."""
    # Imports of other modules come later, because a signal may arrive while they load.
    with interrupts.watched():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    from data.errors import ClipScgiError, RetryableError

    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.handler(arguments))
    except (ClipScgiError, RetryableError) as error:
        if not interrupts.stopping():
            sys.stderr.write(f"clip-scgi: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
