"""Settings of reid that were renamed. The old names work for one release; fingerprints keep them for good."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import model_validator

from data.config import Config
from data.errors import raise_settings

RENAMED: Final = {
    "train.schedule.rate_clip": "train.schedule.lr_clip",
    "train.schedule.rate_new": "train.schedule.lr_new",
    "train.prompts.rate": "train.prompts.lr",
    "train.prompts.rate_min": "train.prompts.lr_min",
    "train.prompts.warmup_rate": "train.prompts.lr_warmup",
    "train.scgi.plain_share": "train.scgi.fixed_prompt_ratio",
    "train.scgi.queries": "train.scgi.inversion_tokens",
}
"""Old key -> new key."""


class RenamedConfig(Config):
    """A group of settings, some of which were renamed; `group` is its key.

    Config files and model configs written before the renaming load, and fingerprints do not change.
    """

    group: ClassVar[str]

    @classmethod
    def _new_names(cls) -> dict[str, str]:
        """Return old name -> new name of the settings in this group."""
        keys = ((old.rpartition("."), new.rpartition(".")) for old, new in RENAMED.items())
        return {old: new for (group, _, old), (_, _, new) in keys if group == cls.group}

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        new_names = cls._new_names()
        twice = [
            (old, f"is the old name of {{at}}{new}; give only {{at}}{new}")
            for old, new in new_names.items()
            if old in values and new in values
        ]
        raise_settings(twice)
        return {new_names.get(name, name): value for name, value in values.items()}

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result, under the names that fingerprints are made of."""
        old_names = {new: old for old, new in self._new_names().items()}
        return {old_names.get(name, name): value for name, value in super().identity().items()}
