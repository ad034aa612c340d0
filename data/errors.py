"""Errors by consequence: what a caller should do about them is in the type, not in the text.

* ``RejectedRow``: this one image, caption or row is bad; record it with its reason and go on.
* ``RetryableError``: the same call may succeed later (a server that restarts, a folder still being copied).
* ``ClipScgiError``: stop; a person has to change something, and the message says what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class ClipScgiError(Exception):
    """A person has to act. The message says what is wrong, where, and what to do."""


class ConfigError(ClipScgiError):
    """A setting, or a combination of settings, cannot work."""


class SettingProblems(ConfigError, ValueError):  # noqa: N818 - it is several problems, each an error of one setting
    """What is wrong with settings that a config holds: (key, problem) pairs.

    A key is relative to that config, and so is what follows "{at}" in a problem; `data.config.build_config`, which
    knows where the config belongs, puts the full keys there. It is a ValueError, so that pydantic collects it.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {problem}".replace("{at}", "") for key, problem in problems))


class DataError(ClipScgiError):
    """A data set as a whole cannot be used: missing, empty, or contradicting itself."""


class WeightsError(ClipScgiError):
    """Model weights are absent or unusable; the message names the file wanted and where."""


class RetryableError(ClipScgiError):
    """The same call may succeed if it is made again later."""


class RejectedRow(Exception):  # noqa: N818 - it names a row's fate, not a failure of the program
    """One image or row is unusable; ``reason`` goes into its row and the run goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def raise_settings(problems: Sequence[tuple[str, str]]) -> None:
    """Raise `SettingProblems` of (key, problem) pairs, or return when there is none."""
    if problems:
        raise SettingProblems(*problems)


def raise_problems(subject: str, problems: Iterable[str], error: type[ClipScgiError] = ConfigError) -> None:
    """Raise one `error` that lists every problem, or return when there is none."""
    found = list(problems)
    if not found:
        return
    if len(found) == 1:
        raise error(f"{subject}: {found[0]}")
    lines = "\n".join(f"  - {problem}" for problem in found)
    raise error(f"{subject}: {len(found)} problems\n{lines}")
