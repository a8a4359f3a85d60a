"""Lists of passes as text: ``fold-constants{byte_budget=0},dead-code``.

    list   = pass ("," pass)*
    pass   = name [ "{" [ option ("," option)* ] "}" ]
    option = name "=" [ value (":" value)* ]        several values, or none, for an option that is a list
    value  = word | JSON string                     quotes if a value contains one of , { } = : "

Blanks around these are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_origin, get_type_hints

from tersor.driver.recipe import build_pass, option_names
from tersor.errors import InvalidOption, suggest
from tersor.pipeline import Pass, registry

_SPECIAL = ',{}=:"'
_TOKEN = re.compile(
    rf'\s*(?:([{re.escape(_SPECIAL[:-1])}])|("(?:[^"\\]|\\.)*")|([^{_SPECIAL}\s]+))'
)
_WORD = re.compile(rf"[^{_SPECIAL}\s]+\Z")


@dataclass(frozen=True)
class PassText:
    """One pass as written: a tuple of texts for each option. ``column`` is its position, from 1, and is
    ignored in comparisons."""

    name: str
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    column: int = field(default=1, compare=False)


def build_passes(text: str) -> list[Pass]:
    """The passes that ``text`` lists.

    Raises:
        InvalidOption: the text breaks the grammar (names the column), or names an unknown pass, option or
            value (with a suggestion).
    """
    return [_build(item) for item in parse_pass_list(text)]


def parse_pass_list(text: str) -> list[PassText]:
    """Parses ``text`` without checking names and values.

    Raises:
        InvalidOption: it breaks the grammar.
    """
    return _Reader(text).passes()


def print_pass_list(items: Sequence[PassText]) -> str:
    """The text that :func:`parse_pass_list` reads back as ``items``."""
    return ",".join(_print_item(item) for item in items)


def describe(passes: Sequence[Pass]) -> list[PassText]:
    """Passes as text, with the options that differ from their defaults."""
    return [
        PassText(
            step.pass_name(),
            tuple(
                (f.name, _texts(getattr(step, f.name)))
                for f in dataclasses.fields(step)
                if getattr(step, f.name) != f.default
            ),
        )
        for step in passes
    ]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)


def _build(item: PassText) -> Pass:
    known = registry.passes()
    if item.name not in known:
        raise InvalidOption(
            f"pass list, column {item.column}: no pass {item.name!r}{suggest(item.name, known)}; "
            "'tersor passes' lists them"
        )
    hints = get_type_hints(known[item.name])
    names = option_names(item.name)
    options: dict[str, Any] = {}
    for name, values in item.options:
        if name in names and get_origin(hints[name]) is not tuple and len(values) != 1:
            raise InvalidOption(
                f"pass {item.name}: option {name!r} takes one value, not {len(values) or 'none'}; "
                "put a value that contains ':' in double quotes"
            )
        several = name in names and get_origin(hints[name]) is tuple
        options[name] = values if several else ":".join(values)
    return build_pass(item.name, options)


def _print_item(item: PassText) -> str:
    options = ",".join(f"{k}={':'.join(map(_print_value, v))}" for k, v in item.options)
    return item.name + (f"{{{options}}}" if options else "")


def _print_value(value: str) -> str:
    return value if _WORD.match(value) else json.dumps(value, ensure_ascii=False)


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def passes(self) -> list[PassText]:
        items = [self._pass()]
        while self._take(","):
            items.append(self._pass())
        if self._peek():
            self._fail(f"expected ',' or the end, found {self._shown()}")
        return items

    def _pass(self) -> PassText:
        column = self._column()
        name = self._name("the name of a pass")
        opened = self._column()
        if not self._take("{"):
            return PassText(name, (), column)
        options: dict[str, tuple[str, ...]] = {}
        while not self._take("}"):
            if not self._peek():
                self._fail("this '{' is not closed", opened)
            if options and not self._take(","):
                self._fail(f"expected ',' or '}}' in the options of {name}, found {self._shown()}")
            place = self._column()
            option = self._name(f"the name of an option of {name}")
            if not self._take("="):
                self._fail(f"expected '=' after option {option!r}, found {self._shown()}")
            if option in options:
                self._fail(f"option {option!r} of {name} is given twice", place)
            options[option] = self._values()
        return PassText(name, tuple(options.items()), column)

    def _values(self) -> tuple[str, ...]:
        if self._peek() in ("", ",", "}"):
            return ()
        values = [self._value()]
        while self._take(":"):
            values.append(self._value())
        return tuple(values)

    def _value(self) -> str:
        token = self._peek()
        if not token or token in _SPECIAL:
            self._fail(f"expected a value, found {self._shown()}")
        if token.startswith('"'):
            try:
                decoded: str = json.loads(token)
            except ValueError:
                self._fail(f"{token} is not a JSON string: write \\ as \\\\")
            token = decoded
        self._next()
        return token

    def _name(self, wanted: str) -> str:
        token = self._peek()
        if not token or token[0] in _SPECIAL:
            self._fail(f"expected {wanted}, found {self._shown()}")
        self._next()
        return token

    def _take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._next()
        return True

    def _peek(self) -> str:
        """The next token; empty at the end."""
        rest = self.text[self.place :]
        if not rest.strip():
            return ""
        match = _TOKEN.match(rest)
        if match is None:
            self._fail("this '\"' is not closed")
        return match.group(0).lstrip()

    def _next(self) -> None:
        match = _TOKEN.match(self.text, self.place)
        assert match is not None
        self.place = match.end()

    def _column(self) -> int:
        rest = self.text[self.place :]
        return self.place + len(rest) - len(rest.lstrip()) + 1

    def _shown(self) -> str:
        token = self._peek()
        return repr(token) if token else "the end"

    def _fail(self, problem: str, column: int | None = None) -> NoReturn:
        raise InvalidOption(f"pass list, column {column or self._column()}: {problem}")
