"""The console script ``clip-scgi``: parse, call one command, turn an expected error into one clear message."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import ClipScgiError, RetryableError
from flows import commands_deploy
from flows.summary import STAGES


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="clip-scgi",
        description="Person re-identification supervised by language: caption, train, evaluate and report.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", type=Path, help="artefact root (default: $CLIP_SCGI_HOME, else ./artifacts)")
    shared.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting, for instance data.root=/images or train.schedule.epochs=20; may be repeated",
    )

    demo = commands.add_parser("demo", parents=[shared], help="the whole pipeline on synthetic people, no download")
    demo.set_defaults(recipe="demo", until="report")

    run = commands.add_parser("run", parents=[shared], help="run a recipe from index to report")
    run.add_argument("recipe", metavar="RECIPE", help="name of a recipe; `clip-scgi recipes` lists them")
    run.add_argument("--until", choices=STAGES, default="report", help="stop after this stage")
    run.add_argument("--reread", action="store_true", help="hash every image again, unchanged size and times or not")

    for stage in STAGES[1:]:
        verb = commands.add_parser(stage, parents=[shared], help=f"run a recipe up to and including {stage}")
        verb.add_argument("recipe", metavar="RECIPE")
        verb.set_defaults(until=stage)

    search = commands.add_parser("search", parents=[shared], help="find people by a sentence or an image")
    search.add_argument("recipe", metavar="RECIPE")
    search.add_argument("query", metavar="QUERY", help="a sentence, or the path of an image")
    search.add_argument("--top", type=int, default=10, help="number of images (default 10)")

    commands_deploy.add_parsers(commands)

    commands.add_parser("recipes", help="list the recipes")
    show = commands.add_parser("show", parents=[shared], help="print every setting of a recipe as JSON")
    show.add_argument("recipe", metavar="RECIPE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a person has to act, 130 interrupted."""
    from flows import commands

    arguments = build_parser().parse_args(argv)
    try:
        if "handler" in arguments:
            return int(arguments.handler(arguments))
        if arguments.command == "recipes":
            return commands.list_recipes()
        if arguments.command == "show":
            return commands.show_recipe(arguments.recipe, arguments.overrides)
        if arguments.command == "search":
            return commands.search_gallery(
                arguments.recipe, arguments.overrides, home=arguments.home, query=arguments.query, top=arguments.top
            )
        return commands.run_recipe(
            arguments.recipe,
            arguments.overrides,
            home=arguments.home,
            until=arguments.until,
            reread=getattr(arguments, "reread", False),
        )
    except (ClipScgiError, RetryableError) as error:
        sys.stderr.write(f"clip-scgi: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("clip-scgi: interrupted; run the same command again to go on where it stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
