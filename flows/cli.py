"""The console script ``clip-scgi``: parse, call one command, turn an expected error into one clear message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data.errors import ClipScgiError, RetryableError
from flows import commands, commands_deploy


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command sets `handler`."""
    parser = argparse.ArgumentParser(
        prog="clip-scgi",
        description="Person re-identification supervised by language: caption, train, evaluate and report.",
    )
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parsers(group)
    commands_deploy.add_parsers(group)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a person has to act, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.handler(arguments))
    except (ClipScgiError, RetryableError) as error:
        sys.stderr.write(f"clip-scgi: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("clip-scgi: interrupted; run the same command again to go on where it stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
