"""Errors by consequence: the type tells the caller what to do, the message tells the user.

* ``RejectedRow``: this one image, caption or row is unusable; record it with its reason and continue.
* ``RetryableError``: the same call may succeed later (a server that restarts, a folder still being copied).
* ``ClipScgiError``: stop; the user has to change something, and the message says what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class ClipScgiError(Exception):
    """An error that the user has to fix. The message says what is wrong, where, and what to do."""

    parts: tuple[str, ...] = ()
    """Each problem as a message of its own, if `raise_problems` raised several."""


class ConfigError(ClipScgiError):
    """A setting, or a combination of settings, that cannot work."""


class SettingProblems(ConfigError, ValueError):  # noqa: N818 - a collection of problems, one per setting
    """Problems of the settings of one config: (key, problem) pairs.

    Keys are relative to that config, and so are keys after "{at}" in a problem; `data.config.build_config` replaces
    both by full keys. A ValueError, so that pydantic collects it.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {problem}".replace("{at}", "") for key, problem in problems))


class DataError(ClipScgiError):
    """A dataset that is unusable as a whole: missing, empty or contradictory."""


class WeightsError(ClipScgiError):
    """Missing or unusable model weights; the message names the file and its location."""


class RetryableError(ClipScgiError):
    """An error that may be gone when the same call is repeated later."""


class RejectedRow(Exception):  # noqa: N818 - the outcome of a row, not a failure of the program
    """An unusable image or row; ``reason`` is recorded in its row and the run continues."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def raise_settings(problems: Sequence[tuple[str, str]]) -> None:
    """Raise `SettingProblems` if there are any (key, problem) pairs."""
    if problems:
        raise SettingProblems(*problems)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as "1 query" and "2,000 queries". plural: where it is irregular."""
    return f"{number:,} {noun if number == 1 else plural or plural_of(noun)}"


def plural_of(noun: str) -> str:
    """Return the regular plural of a noun."""
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def raise_problems(
    subject: str, problems: Iterable[str], error: type[ClipScgiError] = ConfigError, *, more: int = 0
) -> None:
    """Raise one `error` that lists every problem, if there are any. more: the number of those that are not listed."""
    found = list(problems)
    if not found:
        return
    if len(found) == 1:
        raise error(f"{subject}: {found[0]}")
    lines = "\n".join(f"  - {line}" for line in [*found, *([f"and {more:,} more"] if more else [])])
    raised = error(f"{subject}: {len(found) + more:,} problems\n{lines}")
    raised.parts = tuple(f"{subject}: {problem}" for problem in found)
    raise raised


def messages_of(error: ClipScgiError) -> tuple[str, ...]:
    """Return the problems that `error` reports, one message each, so that they can be listed among others."""
    return error.parts or (str(error),)
