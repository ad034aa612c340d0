"""Rendering of a model's chat template (Jinja) in a child process: a template is a program that may never end.

The template is rendered as transformers renders it, but always to the same text: without the current date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.process.bounded import TimeLimitError, bounded, serve

SECONDS: Final = 5
"""Processor time of one template."""
_LONGEST: Final = 1_000_000
# {% generation %} marks what a model says in training; it does not change the text.
_MARK: Final = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Rendered(NamedTuple):
    """The text of a template. error: why there is none. ends: False if the template does not end."""

    text: str
    error: str = ""
    ends: bool = True


def render(source: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]) -> Rendered:
    """Return the text that the chat template `source` makes of `messages`, with the prompt for an answer.

    tokens: special tokens by name, which the template may use.
    """
    return _rendered(json.dumps([source, messages, tokens]), SECONDS)


@cache
def _rendered(request: str, seconds: int) -> Rendered:
    try:
        return Rendered(**bounded(__name__, request, seconds=seconds))
    except TimeLimitError as error:
        return Rendered("", str(error), ends=False)


def _answer(request: str) -> dict[str, str]:
    source, messages, tokens = json.loads(request)
    try:
        return {"text": _text(source, messages, tokens)}
    except Exception as error:  # a template is a program: it may fail in any way, with RecursionError too
        return {"text": "", "error": f"{type(error).__name__}: {error}".rstrip(": ")}


def _text(source: str, messages: list[dict[str, Any]], tokens: dict[str, str]) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    for chance in (environment.globals, environment.filters):  # the same text in every process
        chance.pop("lipsum", None)
        chance.pop("random", None)
    marked = _MARK.sub(lambda found: f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}", source)
    text = environment.from_string(marked).render(messages=messages, add_generation_prompt=True, **tokens)
    if len(text) > _LONGEST:
        raise TemplateError(f"it writes more than {_LONGEST:,} characters")
    text.encode()  # raises for a lone surrogate, which cannot be tokenized
    return text


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise TemplateError(message)


if __name__ == "__main__":
    serve(_answer)
