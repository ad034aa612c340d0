"""``clip-scgi deploy`` and ``clip-scgi serve``: from a recipe to something Prefect runs by itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from data.artifacts.store import HOME_VARIABLE, ArtifactStore
from data.errors import ConfigError, raise_problems
from flows.cli import artifacts as commands_artifacts
from flows.execution.server import api_url, check_server
from flows.interrupts import leave_to_asyncio
from flows.recipes import Recipe, build_recipe
from flows.terminal import plain_console


def deploy(
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    home: Path | None = None,
    pool: str = "clip-scgi",
    cron: str | None = None,
    watch_cron: str | None = None,
    crashed_after: float = 540.0,
) -> int:
    """Register one deployment a recipe, and ``watch-datasets``, with the server at ``PREFECT_API_URL``.

    crashed_after: seconds without a heartbeat (one every 30 s) after which a run counts as crashed.
    """
    recipes = _recipes(names, overrides)
    _need_server("deploy")
    root = str((ArtifactStore(home) if home else ArtifactStore.default()).root)
    from flows.deploy.deployments import recipe_deployment, register, watch_deployment

    made = [recipe_deployment(recipe, cron=cron, pool=pool, home=root) for recipe in recipes]
    watch = watch_deployment(pool=pool, home=root, **({"cron": watch_cron} if watch_cron else {}))
    full_names = register(*made, watch, crashed_after=timedelta(seconds=crashed_after))
    console = plain_console()
    console.print(f"artefacts {root}", highlight=False, soft_wrap=True)
    console.print(f"worker    prefect worker start --pool {pool}", highlight=False)
    for name in full_names:
        console.print(f"run       prefect deployment run '{name}' --watch", highlight=False, soft_wrap=True)
    return 0


def serve(
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    home: Path | None = None,
    cron: str | None = None,
    watch_cron: str | None = None,
    limit: int = 1,
) -> int:
    """Register the deployments and run them in this process until it is stopped: one machine, no work pool."""
    recipes = _recipes(names, overrides)
    _need_server("serve")
    root = str((ArtifactStore(home) if home else ArtifactStore.default()).root)
    from flows.deploy.deployments import environment, recipe_deployment, serve_here, watch_deployment

    # Served runs are subprocesses and inherit this environment.
    os.environ.update(environment(root))
    made = [recipe_deployment(recipe, cron=cron, pool=None) for recipe in recipes]
    watch = watch_deployment(pool=None, **({"cron": watch_cron} if watch_cron else {}))
    console = plain_console()
    for deployment in [*made, watch]:
        console.print(f"serving   {deployment.full_name}", highlight=False)
    console.print(f"artefacts {root} ({HOME_VARIABLE})", highlight=False, soft_wrap=True)
    leave_to_asyncio()
    serve_here(*made, watch, limit=limit)
    return 0


def _recipes(names: Sequence[str], overrides: Sequence[str]) -> list[Recipe]:
    """Build the recipes; two with one data set name would overwrite each other's deployment."""
    recipes = [build_recipe(name, overrides) for name in names]
    labels = [recipe.data.label for recipe in recipes]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"two recipes for the data set {twice[0]!r}: deploy them one by one with --set data.name=...")
    raise_problems("the deployment", filter(None, map(_root_problem, recipes)), ConfigError)
    return recipes


def _root_problem(recipe: Recipe) -> str:
    """Return why no run of a deployment could find the images, or ""; a run does not begin in this folder."""
    root = recipe.data.root
    if not root and recipe.synthetic is None:
        return f"recipe {recipe.name} has no images: set data.root to their folder, such as data.root=/data/images"
    if root and not Path(root).expanduser().is_absolute():
        return f"data.root={root} is relative, and runs begin elsewhere: set data.root={Path(root).absolute()}"
    return ""


def _need_server(verb: str) -> None:
    """Raise ConfigError unless a Prefect server is named and answers."""
    if not api_url():
        raise ConfigError(
            f"{verb} needs a Prefect server that stays: start one with `prefect server start` and say where it is with"
            " `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api` (or that environment variable)"
        )
    check_server()


def add_parsers(commands: Any) -> None:
    """Add ``deploy``, ``serve`` and ``artifacts`` to the subparsers of ``clip-scgi``.

    Each sets `handler`, a function of the parsed arguments that returns the exit status.
    """
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("recipes", metavar="RECIPE", nargs="+", help="names of recipes; `clip-scgi recipes` lists them")
    shared.add_argument("--home", type=Path, help="artefact root (default: $CLIP_SCGI_HOME, else ./artifacts)")
    shared.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    shared.add_argument("--cron", help="run on this schedule too, such as '0 3 * * *'; without it, when data change")
    shared.add_argument("--watch-cron", help="when to look for changed data sets (default: every five minutes)")

    parser = commands.add_parser("deploy", parents=[shared], help="register deployments caption-and-train/<dataset>")
    parser.add_argument("--pool", default="clip-scgi", help="work pool; created if absent (default: clip-scgi)")
    parser.add_argument(
        "--crashed-after",
        type=float,
        default=540.0,
        metavar="SECONDS",
        help="a run counts as crashed after so long without a heartbeat (default: 540; one comes every 30)",
    )
    parser.set_defaults(handler=_deploy)

    parser = commands.add_parser("serve", parents=[shared], help="register and run them here, without a work pool")
    parser.add_argument("--limit", type=int, default=1, help="runs at a time (default: 1)")
    parser.set_defaults(handler=_serve)

    commands_artifacts.add_parsers(commands)


def _deploy(arguments: argparse.Namespace) -> int:
    return deploy(
        arguments.recipes,
        arguments.overrides,
        home=arguments.home,
        pool=arguments.pool,
        cron=arguments.cron,
        watch_cron=arguments.watch_cron,
        crashed_after=arguments.crashed_after,
    )


def _serve(arguments: argparse.Namespace) -> int:
    return serve(
        arguments.recipes,
        arguments.overrides,
        home=arguments.home,
        cron=arguments.cron,
        watch_cron=arguments.watch_cron,
        limit=arguments.limit,
    )
