"""Filters of a gallery, such as ``camera=3 and upper_color=red and time >= 2026-01-01``.

Grammar, keywords in any case::

    filter     = alternative ("or" alternative)*
    alternative = factor ("and" factor)*
    factor     = "not" factor | "(" filter ")" | comparison
    comparison = column ("=" | "!=" | "<" | "<=" | ">" | ">=") value | column "in" "(" value ("," value)* ")"
    value      = word | 'text' | "text" | unknown

A quote inside quoted text is written twice. `unknown` may follow = and !=, and be in a list. Attributes (`data.slots`)
are compared without regard to case, other text exactly. A comparison with an unknown value is
neither true nor false, as in SQL, so that ``not camera=3`` does not select images of an unknown camera. A date stands
for its whole day.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import ConfigError
from data.settings import nearest
from data.slots import SLOTS
from reid.gallery.entry import KINDS, Kind, normal
from reid.gallery.times import EXAMPLE, parse_time

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<sign><=|>=|!=|==|[=<>(),])|(?P<word>[^\s()<>=!,'"]+))"""
)
_COMPARE: Final[dict[str, Callable[..., Any]]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_EQUALITY: Final = ("=", "!=")
_KEYWORDS: Final = ("and", "or", "not", "in")
_UNKNOWN: Final = "unknown"
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}")
_DAY: Final = timedelta(days=1)
_DEEPEST: Final = 50
_SIMILAR: Final = 0.6
_AND: Final = pc.and_kleene
_OR: Final = pc.or_kleene

Value = str | float | int | datetime
Test = Callable[[pa.Table], Any]
"""table -> one boolean per row, null where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """A parsed filter. text: as written. columns: that it names, each once."""

    text: str
    test: Test
    columns: tuple[str, ...]

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return for each row of `table` whether it passes, [N]."""
        passed = pc.fill_null(self.test(table), False)
        if isinstance(passed, pa.ChunkedArray):
            passed = passed.combine_chunks()
        return np.asarray(passed.to_numpy(zero_copy_only=False), dtype=np.bool_)


def parse_where(text: str) -> Where:
    """Return the filter that `text` describes.

    Raises ConfigError, with the position of the problem (from 1) and the columns there are, if it is not a filter.
    """
    parser = _Parser(text)
    return Where(text=text, test=parser.whole(), columns=tuple(parser.columns))


class _Token(NamedTuple):
    """at: position of its first character, from 0. quoted: True for a text in quotes, which `text` does not include."""

    text: str
    at: int
    quoted: bool = False

    def is_sign(self, *signs: str) -> bool:
        return not self.quoted and self.text.lower() in signs


def _tokens(text: str) -> list[_Token]:
    found, at, end = list[_Token](), 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            what = "the quote is not closed" if text[start] in "'\"" else f"{text[start]!r} is unexpected"
            _fail(text, start, f"{what}; write a comparison such as camera=3 or label='Ann Lee'")
        kind = match.lastgroup or ""
        body, start = match[kind], match.start(kind)
        if kind == "text":
            found.append(_Token(body[1:-1].replace(body[0] * 2, body[0]), start, quoted=True))
        else:
            found.append(_Token("=" if body == "==" else body, start))
        at = match.end()
    return found


def _fail(text: str, at: int, problem: str) -> NoReturn:
    raise ConfigError(f"filter {text!r}, position {at + 1}: {problem}")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.columns: dict[str, None] = {}  # in the order in which the filter names them
        self._left = _tokens(text)[::-1]
        self._depth = 0

    def whole(self) -> Test:
        if not self._left:
            self._expected("a comparison, such as camera=3")
        test = self._alternatives()
        if self._left:
            self._expected("and, or, or the end of the filter")
        return test

    def _alternatives(self) -> Test:
        return self._joined(lambda: self._joined(self._factor, "and", _AND), "or", _OR)

    def _joined(self, part: Callable[[], Test], word: str, join: Callable[..., Any]) -> Test:
        test = part()
        while self._take(word):
            test = _both(test, part(), join)
        return test

    def _factor(self) -> Test:
        self._depth += 1
        if self._depth > _DEEPEST:
            self._expected(f"at most {_DEEPEST} parentheses and nots inside each other")
        if self._take("not"):
            inner = self._factor()
            test: Test = lambda table: pc.invert(inner(table))  # noqa: E731
        elif self._take("("):
            test = self._alternatives()
            if not self._take(")"):
                self._expected("and, or, or a closing parenthesis")
        else:
            test = self._comparison()
        self._depth -= 1
        return test

    def _comparison(self) -> Test:
        name = self._column()
        self.columns[name] = None
        kind = KINDS[name]
        if self._take("in"):
            return self._membership(name, kind)
        sign = self._peek()
        if sign is None or not sign.is_sign(*_COMPARE):
            self._expected(f"one of {' '.join(_COMPARE)} or in, after the column {name}")
        self._left.pop()
        if kind == "text" and sign.text not in _EQUALITY:
            _fail(
                self._text,
                sign.at,
                f"the column {name} is text, which cannot be compared by {sign.text}; use =, != or in",
            )
        if (word := self._peek()) and word.is_sign(_UNKNOWN):
            if sign.text not in _EQUALITY:
                _fail(self._text, word.at, f"{_UNKNOWN} can only follow = and !=")
            self._left.pop()
            return _unknown(name, negative=sign.text == "!=")
        token = self._value(name)
        return _compared(name, sign.text, self._read(token, name, kind), is_day=_is_day(token, kind))

    def _membership(self, name: str, kind: Kind) -> Test:
        if not self._take("("):
            self._expected(f"a list in parentheses, such as {name} in (a, b)")
        tests = list[Test]()
        while True:
            if self._take(_UNKNOWN):
                tests.append(_unknown(name, negative=False))
            else:
                token = self._value(name)
                tests.append(_compared(name, "=", self._read(token, name, kind), is_day=_is_day(token, kind)))
            if self._take(")"):
                break
            if not self._take(","):
                self._expected("a comma or a closing parenthesis")
        test = tests[0]
        for other in tests[1:]:
            test = _both(test, other, _OR)
        return test

    def _column(self) -> str:
        token = self._peek()
        if token is None or token.quoted or token.is_sign(*_KEYWORDS, *_COMPARE, "(", ")", ","):
            self._expected(f"a column; the columns are {', '.join(KINDS)}")
        self._left.pop()
        name = token.text.lower()
        if name not in KINDS:
            near = nearest(name, KINDS, _SIMILAR)
            hint = f" (did you mean {near[0]}?)" if near else ""
            columns = ", ".join(KINDS)
            _fail(self._text, token.at, f"the column {token.text!r} does not exist{hint}; the columns are {columns}")
        return name

    def _value(self, name: str) -> _Token:
        token = self._peek()
        if token is None or (not token.quoted and token.is_sign(*_KEYWORDS, *_COMPARE, "(", ")", ",")):
            self._expected(f"a value for the column {name}; put values with blanks or signs in quotes")
        self._left.pop()
        return token

    def _read(self, token: _Token, name: str, kind: Kind) -> Value:
        value = _READ[kind](token.text)
        if value is None:
            wanted = f"a number, but {token.text!r} is not" if kind == "number" else f"a time, such as {EXAMPLE}"
            _fail(self._text, token.at, f"the column {name} needs {wanted}")
        return value

    def _peek(self) -> _Token | None:
        return self._left[-1] if self._left else None

    def _take(self, sign: str) -> bool:
        token = self._peek()
        if token is None or not token.is_sign(sign):
            return False
        self._left.pop()
        return True

    def _expected(self, what: str) -> NoReturn:
        token = self._peek()
        at = len(self._text.rstrip()) if token is None else token.at
        found = "the filter ends here" if token is None else f"found {token.text!r}"
        _fail(self._text, at, f"expected {what}; {found}")


def _number(text: str) -> Value | None:
    try:
        return int(text) if abs(int(text)) < 1 << 63 else None
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_READ: Final[dict[Kind, Callable[[str], Value | None]]] = {"text": normal, "number": _number, "time": parse_time}


def _is_day(token: _Token, kind: Kind) -> bool:
    return kind == "time" and _DATE.fullmatch(token.text.strip()) is not None


def _both(left: Test, right: Test, join: Callable[..., Any]) -> Test:
    return lambda table: join(left(table), right(table))


def _unknown(name: str, *, negative: bool) -> Test:
    function = pc.is_valid if negative else pc.is_null
    return lambda table: function(table[name])


def _compared(name: str, sign: str, value: Value, *, is_day: bool) -> Test:
    if is_day and isinstance(value, datetime):
        return _day(name, sign, value)
    if name in SLOTS and isinstance(value, str):
        lowered = pa.scalar(value.lower())
        return lambda table: _COMPARE[sign](pc.utf8_lower(table[name]), lowered)
    # float32 values would be compared as double, in which 0.8 differs from the stored 0.8.
    scalar = np.float32(value) if isinstance(value, float) else value
    return lambda table: _COMPARE[sign](table[name], pa.scalar(scalar))


def _day(name: str, sign: str, day: datetime) -> Test:
    """Return the comparison with a whole day."""
    since, until = (
        _compared(name, ">=", day, is_day=False),
        _compared(name, "<", min(day, datetime.max - _DAY) + _DAY, is_day=False),
    )
    match sign:
        case "=":
            return _both(since, until, _AND)
        case "!=":
            return lambda table: pc.invert(_both(since, until, _AND)(table))
        case "<=":
            return until
        case ">":
            return lambda table: pc.invert(until(table))
        case _:
            return _compared(name, sign, day, is_day=False)
