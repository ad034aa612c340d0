"""Checks of a captioning server: does it answer, accept the key, and list the model."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flows.preflight.plan import Plan


def server_problems(plan: Plan) -> Iterator[str]:
    """Yield why the server rejects requests, such as a wrong key."""
    if _asks(plan) and plan.server.refusal:
        yield plan.server.refusal


def silent_server_problems(plan: Plan) -> Iterator[str]:
    """Yield that the server does not answer. Not a rule of a run, which waits for a server that restarts."""
    if _asks(plan) and plan.server.silence:
        yield (
            f"caption.server.url={plan.caption.server.url}: no usable answer from the server: {plan.server.silence}. "
            "Start it, or set the base of its API, which usually ends in /v1, such as "
            "caption.server.url=http://127.0.0.1:8000/v1"
        )


def server_notices(plan: Plan) -> Iterator[str]:
    """Yield that the server does not list the model: some servers load a model on request, and some list none."""
    if not _asks(plan) or plan.server.refusal or plan.server.silence:
        return
    url = plan.caption.server.url
    if plan.server.models is None:
        yield (
            f"the server does not list its models at {url}/models, so caption.model={plan.caption.model} is not"
            " checked: make sure that caption.server.url is the base of its API, which usually ends in /v1, such as"
            " caption.server.url=http://127.0.0.1:8000/v1"
        )
        return
    if plan.caption.model in plan.server.models:
        return
    names = ", ".join(plan.server.models) or "no model"
    yield (
        f"the server {url} lists {names}, not caption.model={plan.caption.model}: set "
        "caption.model to a name that it lists, unless it loads models on request"
    )


def _asks(plan: Plan) -> bool:
    """Return True if captions come from a server. Without its key it is not asked: `key_problems` reports that."""
    variable = plan.caption.server.key_variable
    has_key = not variable or bool(os.environ.get(variable))
    return "caption" in plan.stages and plan.caption.engine == "openai" and has_key
