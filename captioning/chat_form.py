"""The prompt of a local LLaVA: its own chat template, rendered around an instruction. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from captioning.chat_render import render
from captioning.prompts.templates import Template
from data.artifacts.fingerprint import digest
from data.config import Config
from data.errors import ConfigError, WeightsError
from data.weights import file_problem, read_model_json

LLAVA: Final = "llava"
LLAVA_NEXT: Final = "llava_next"
LLAVA_ONEVISION: Final = "llava_onevision"
MODEL_TYPES: Final = (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION)
"""Model types (config.json) that run in this process."""

TILES_VERSION: Final = 1
"""Raise it whenever another grid of tiles is chosen or filled differently; part of the captioner fingerprint."""

_IMAGE: Final = "<image>"
_JINJA: Final = "chat_template.jinja"
_JSON: Final = ("chat_template.json", "processor_config.json")
_TOKENIZER: Final = "tokenizer_config.json"
_SPECIAL: Final = "special_tokens_map.json"
_TOKENS: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "image_token",
    "video_token",
)
# The text of an object that is not text, such as a generator; its address differs between processes.
_OBJECT: Final = re.compile(r"<[^<>]+ at 0x[0-9a-f]+>")


class ChatForm(Config):
    """How a model is prompted: all that its folder says about it."""

    model_type: str
    """model_type in config.json."""
    chat_template: str | None = None
    """Source of the chat template (Jinja), or None if the folder has none."""
    tokens: dict[str, str] = Field(default_factory=dict)
    """Name -> special token that the template may use."""

    def prompt(self, template: Template) -> str:
        """Return the final prompt, exactly as it is tokenized, with `<image>` in place of the image.

        A `llava` folder without a chat template gets the prompt of LLaVA-1.5. Raises ConfigError if the chat template
        cannot be used.
        """
        if self.chat_template is None:
            if self.model_type == LLAVA:
                return template.prompt()
            raise ConfigError(
                f"caption.model: a {self.model_type} needs its chat template, because its versions expect different "
                f"prompts: copy {_JINJA} (or chat_template.json) from the model's repository into its folder"
            )
        return _conversation(self.chat_template, template, self.tokens)

    def ingredients(self, template: Template) -> dict[str, Any]:
        """Return what the form adds to the ingredients of a captioner: nothing for a LLaVA-1.5, whose prompt and whose
        one view of the image the other ingredients describe."""
        found: dict[str, Any] = {}
        if self.model_type != LLAVA:
            found |= {"model_type": self.model_type, "tiles": TILES_VERSION}
        prompt = self.prompt(template)
        if prompt != template.prompt() or found:
            found["prompt"] = digest(prompt)
        return found


def read_chat_form(folder: Path) -> ChatForm | None:
    """Return how the model in `folder` is prompted, or None if it is not a LLaVA that runs in this process.

    Reads only small text files. Raises WeightsError if one of them is damaged.
    """
    config = folder / "config.json"
    kind = read_model_json(config).get("model_type") if config.is_file() and not file_problem(config) else None
    if kind not in MODEL_TYPES:
        return None
    settings = _settings(folder / _TOKENIZER)
    own = _processor_template(folder)
    older = _settings(folder / _SPECIAL)
    tokens = {name: _token(settings.get(name, older.get(name))) for name in _TOKENS}
    return ChatForm(
        model_type=kind,
        chat_template=own if own is not None else _default(settings.get("chat_template")),
        tokens={name: token for name, token in tokens.items() if token is not None},
    )


def _processor_template(folder: Path) -> str | None:
    """Return the processor's chat template from the first of the files in which transformers looks for it."""
    older, newest = (_default(_settings(folder / name).get("chat_template")) for name in _JSON)
    jinja = folder / _JINJA
    if newest is not None or older is not None:
        return newest if newest is not None else older
    if not jinja.is_file():
        return None
    problem = file_problem(jinja)
    if problem is not None:
        raise WeightsError(f"{jinja} {problem}")
    try:
        return jinja.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{jinja} is not UTF-8 text ({error}): download or copy it again") from error


def _settings(path: Path) -> dict[str, Any]:
    return read_model_json(path) if path.is_file() else {}


def _default(value: Any) -> str | None:
    """Return the template named default among several, or the only one."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _token(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _conversation(source: str, template: Template, tokens: dict[str, str]) -> str:
    """Return the prompt that the chat template `source` makes of an image and an instruction.

    Templates of processors expect messages of parts, images and texts; those of tokenizers expect text.
    """
    wanted = [template.instruction] if template.system is None else [template.system, template.instruction]
    errors = []
    for parts in (True, False):
        text, error, ends = render(source, _messages(template, parts=parts), tokens)
        if error:
            errors.append(error)
            if ends:
                continue
            break
        if text.count(_IMAGE) == 1 and all(words in text for words in wanted) and not _OBJECT.search(text):
            return text
    reason = errors[0] if errors else f"it must write {_IMAGE} once, each message as it is, and nothing but text"
    system = "; if it does not take a system sentence, set caption.template to a template without one"
    raise ConfigError(
        f"caption.model: the chat template of the model cannot be used ({reason}): copy {_JINJA} (or "
        f"chat_template.json) from the model's repository into its folder{system if template.system else ''}"
    )


def _messages(template: Template, *, parts: bool) -> list[dict[str, Any]]:
    said = [{"role": "system", "content": _content(template.system, parts=parts)}] if template.system else []
    image: Any = [{"type": "image"}] if parts else f"{_IMAGE}\n"
    return [*said, {"role": "user", "content": image + _content(template.instruction, parts=parts)}]


def _content(text: str, *, parts: bool) -> Any:
    return [{"type": "text", "text": text}] if parts else text
