"""Caption templates: the instruction to the model and the pattern of its reply.

A custom template is a small TOML file::

    id = "two-sentences"
    instruction = "Describe the person in two sentences."
    max_new_tokens = 60                                   # optional

    [[pattern]]                                           # optional; required for decoding=slots
    introduces = true
    clauses = [{phrase = "upper", first = " is wearing ", later = " and "}]
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from captioning.prompts.pattern import PAPER_PATTERN, PATTERN_VERSION, PORT_PATTERN, Pattern, compose
from data.artifacts.fingerprint import digest
from data.config import Config, build_config
from data.errors import ConfigError
from data.slots import NONE, VOCABULARY

__all__ = ["LLAVA_SYSTEM", "Template", "builtin_templates", "compose", "get_template"]

LLAVA_SYSTEM: Final = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""The system sentence that the original LLaVA repository prepends, unlike transformers."""

_RESERVED: Final = ("<image>", "USER:", "ASSISTANT:")


class Template(Config):
    """An instruction for captioning, with the pattern of the reply."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of the template, written to the column template_id."""
    instruction: str
    """Instruction to the model, without image token and roles. Line breaks are kept."""
    system: str | None = None
    """Sentence before the conversation, or None for the form that transformers uses."""
    max_new_tokens: int = Field(default=77, ge=1, le=1024)
    """Maximum number of generated tokens; a reply without an end token is marked truncated. CLIP reads 77 tokens."""
    pattern: Pattern = ()
    """The sentences that slot-filling decoding may write; empty if the template supports only free decoding."""

    @field_validator("instruction", "system")
    @classmethod
    def _plain_words(cls, text: str | None) -> str | None:
        if text is None:
            return None
        if not text.strip():
            raise ValueError("must not be empty")
        found = [word for word in _RESERVED if word in text]
        if found:
            raise ValueError(f"must not contain {', '.join(found)}: the prompt adds it")
        return text.strip()

    @field_validator("pattern")
    @classmethod
    def _speakable(cls, pattern: Pattern) -> Pattern:
        problems = []
        if pattern and [sentence.introduces for sentence in pattern] != [True] + [False] * (len(pattern) - 1):
            problems.append("the first sentence, and no other, must have introduces = true")
        phrases = [clause.phrase for sentence in pattern for clause in sentence.clauses]
        twice = sorted({phrase for phrase in phrases if phrases.count(phrase) > 1})
        if twice:
            problems.append(f"each phrase may occur only once, but {', '.join(twice)} occurs twice")
        if problems:
            raise ValueError("; ".join(problems))
        return pattern

    def prompt(self) -> str:
        """Return the final prompt of LLaVA-1.5, exactly as it is tokenized, with `<image>` in place of the image."""
        conversation = f"USER: <image>\n{self.instruction} ASSISTANT:"
        return f"{self.system} {conversation}" if self.system else conversation

    @property
    def digest(self) -> str:
        """The sha256 (64 hex digits) of everything that can change a caption: prompt, limit, pattern and vocabularies.

        The id is left out, because renaming a template must not caption any image again.
        """
        parts: dict[str, object] = {"prompt": self.prompt(), "max_new_tokens": self.max_new_tokens, "pattern": None}
        if self.pattern:
            parts["pattern"] = [sentence.model_dump(mode="json") for sentence in self.pattern]
            parts["pattern_version"] = PATTERN_VERSION
            parts["vocabulary"] = {slot: list(values) for slot, values in VOCABULARY.items()}
        return digest(parts)


def _listed(slot: str) -> str:
    return ", ".join(value for value in VOCABULARY[slot] if value != NONE)


_PAPER_WORDS: Final = (
    "A [age] [gender] is wearing [upper clothes] and [lower clothes]. "
    "The [gender] is wearing [shoes] and carrying a [bag]. "
    "The [gender] has [hair length] and [glasses]."
)

_BUILTIN: Final = (
    Template(
        id="scgi",
        instruction=f"Describe the person in the image following this template: {_PAPER_WORDS}",
        pattern=PAPER_PATTERN,
    ),
    Template(
        id="port45",
        instruction=(
            "Describe the most obvious person only. Ignore background. "
            "Use at most 45 words and follow this template: "
            "A [age] [gender] is wearing [upper clothes]. [gender] is wearing [lower clothes]. "
            "The [gender] is wearing [shoes] and carrying [others/accessories]. "
            "The [gender] has [hair length] and [wearing glasses or not]."
        ),
        pattern=PORT_PATTERN,
    ),
    Template(
        id="free",
        instruction=(
            "Write a description about the overall appearance of the person in the image, including the attributes: "
            "clothing, shoes, hairstyle, gender and belongings. "
            "If any attribute is not visible, you can ignore it. "
            "Do not imagine any contents that are not in the image."
        ),
        max_new_tokens=128,
    ),
    Template(
        id="closed",
        instruction=(
            f"Describe the person in the image following this template: {_PAPER_WORDS} "
            "Choose every word from these lists and leave out what is not visible. "
            f"Age: {_listed('age')}. Gender: man, woman. Colors: {_listed('upper_color')}. "
            f"Upper clothes: {_listed('upper_type')}. Lower clothes: {_listed('lower_type')}. "
            f"Shoes: {_listed('shoes')}. Bag: {_listed('carrying')}. "
            f"Hair: {_listed('hair')}. Glasses: {_listed('glasses')}."
        ),
        pattern=PAPER_PATTERN,
    ),
)


def builtin_templates() -> tuple[Template, ...]:
    """Return the built-in templates: the paper's, the public port's, a free description and a closed choice."""
    return _BUILTIN


def get_template(name_or_path: str | Path) -> Template:
    """Return a built-in template by its id, or read a custom template from its TOML file.

    Raises ConfigError for an unknown id, an unreadable file, or an invalid one (with all its problems).
    """
    by_id = {template.id: template for template in _BUILTIN}
    if name_or_path in by_id:
        return by_id[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if path.suffix != ".toml":
        raise ConfigError(
            f"unknown template {str(name_or_path)!r}: expected {', '.join(by_id)}, or the path of a .toml file"
        )
    template = build_config(Template, _read_toml(path), f"template {path}")
    if template.id in by_id:
        raise ConfigError(f"template {path}: id {template.id!r} belongs to a built-in template; choose another one")
    return template


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"template {path}: the file does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"template {path}: not valid TOML ({error})") from error
