"""Actions of ``clip-scgi deploy`` and ``clip-scgi serve``: turn recipes into deployments that Prefect runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from data.artifacts.root import HOME_VARIABLE
from data.errors import ConfigError, raise_problems
from data.sources.address import is_remote
from flows.cli.inputs import artifact_store, recipe_of
from flows.execution.site_server import api_url, check_server
from flows.interrupts import leave_to_asyncio
from flows.recipes import Recipe
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
) -> None:
    """Register one deployment per recipe, and ``watch-datasets``, with the server at ``PREFECT_API_URL``.

    crashed_after: seconds without a heartbeat (one every 30 s) after which a run counts as crashed.
    """
    recipes = _recipes(names, overrides)
    _check_server("deploy")
    from flows.deploy.deployments import WATCH_CRON, recipe_deployment, register, watch_deployment

    root = str(artifact_store(home).root)
    made = [recipe_deployment(recipe, cron=cron, pool=pool, home=root) for recipe in recipes]
    watch = watch_deployment(cron=watch_cron or WATCH_CRON, pool=pool, home=root)
    full_names = register(*made, watch, crashed_after=timedelta(seconds=crashed_after))
    console = plain_console()
    console.print(f"artifacts {root}", highlight=False, soft_wrap=True)
    console.print(f"worker    prefect worker start --pool {pool}", highlight=False)
    for name in full_names:
        console.print(f"run       prefect deployment run '{name}' --watch", highlight=False, soft_wrap=True)


def serve(
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    home: Path | None = None,
    cron: str | None = None,
    watch_cron: str | None = None,
    limit: int = 1,
) -> None:
    """Register the deployments and run them in this process until it is stopped: one machine, no work pool."""
    recipes = _recipes(names, overrides)
    _check_server("serve")
    from flows.deploy.deployments import WATCH_CRON, environment, recipe_deployment, serve_here, watch_deployment

    root = str(artifact_store(home).root)
    os.environ.update(environment(root))  # served runs are subprocesses and inherit it
    served = [recipe_deployment(recipe, cron=cron, pool=None) for recipe in recipes]
    served.append(watch_deployment(cron=watch_cron or WATCH_CRON, pool=None))
    console = plain_console()
    for deployment in served:
        console.print(f"serving   {deployment.full_name}", highlight=False)
    console.print(f"artifacts {root} ({HOME_VARIABLE})", highlight=False, soft_wrap=True)
    leave_to_asyncio()
    serve_here(*served, limit=limit)


def _recipes(names: Sequence[str], overrides: Sequence[str]) -> list[Recipe]:
    """Build the recipes; raise ConfigError for two with one dataset name, which would share a deployment."""
    recipes = [recipe_of(name, overrides) for name in names]
    for label, count in Counter(recipe.data.label for recipe in recipes).items():
        if count > 1:
            raise ConfigError(
                f"{count} recipes use the dataset name {label!r}: deploy them one by one with --set data.name=NAME"
            )
    raise_problems("the deployment", filter(None, map(_root_problem, recipes)), ConfigError)
    return recipes


def _root_problem(recipe: Recipe) -> str:
    """Return why the runs of a deployment, which start in other folders, would not find the images, or ""."""
    root = recipe.data.root
    if not root and recipe.synthetic is None:
        return f"recipe {recipe.name} has no images: set data.root to their folder, such as data.root=/data/images"
    if root and not is_remote(root) and not Path(root).expanduser().is_absolute():
        return f"data.root={root} is relative, but runs start in other folders: set data.root={Path(root).absolute()}"
    return ""


def _check_server(verb: str) -> None:
    """Raise ConfigError unless a Prefect server is configured and answers."""
    if not api_url():
        raise ConfigError(
            f"{verb} needs a permanent Prefect server: start one with `prefect server start` and set its address with"
            " `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api` (or in that environment variable)"
        )
    check_server()
