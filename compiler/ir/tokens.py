"""The tokenizer of the text form."""

from __future__ import annotations

import json
import re

from tersor.errors import InvalidGraph
from tersor.ir.types import parse_type

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<arrow>->)
      | (?P<ref>[%@](?:[A-Za-z0-9_./\-]+|"(?:[^"\\]|\\.)*"))
      | (?P<digest>\#[0-9a-f]+)
      | (?P<number>[-+]?(?:inf\b|nan\b|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))
      | (?P<word>[A-Za-z_][A-Za-z0-9_./\-]*)
      | (?P<mark>[(){}\[\],=:])""",
    re.VERBOSE,
)
_TYPE = re.compile(r"(?:seq<|optional<|map<[a-z0-9]+, )*(?:unknown|[a-z0-9]+\[[^\]]*\])>*")


class Tokens:
    """A text and the current position in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, message: str) -> InvalidGraph:
        return InvalidGraph(f"line {self.text.count(chr(10), 0, self.position) + 1}: {message}")

    def fail(self, message: str) -> InvalidGraph:
        raise self.error(message)

    def peek(self) -> tuple[str, str, int]:
        """Kind, text and end of the next token; ``("end", "", n)`` at the end."""
        start = self.position
        while start < len(self.text):
            match = _TOKEN.match(self.text, start)
            if match is None:
                self.fail(f"cannot read {self.text[start : start + 20]!r}")
            assert match is not None and match.lastgroup is not None
            if match.lastgroup != "space":
                return match.lastgroup, match.group(), match.end()
            start = self.position = match.end()
        return "end", "", start

    def take(self, expected: str = "") -> str:
        kind, text, end = self.peek()
        if kind == "end":
            self.fail(f"unexpected end of text{f', expected {expected!r}' if expected else ''}")
        if expected and text != expected:
            self.fail(f"expected {expected!r}, found {text!r}")
        self.position = end
        return text

    def accept(self, text: str) -> bool:
        if self.peek()[1] == text:
            self.take()
            return True
        return False

    def name(self) -> str:
        text = self.take()
        return str(json.loads(text)) if text.startswith('"') else text

    def string(self) -> str:
        kind, text, _ = self.peek()
        if kind != "string":
            self.fail(f"expected a string, found {text!r}")
        return str(json.loads(self.take()))

    def ref(self) -> str:
        kind, text, _ = self.peek()
        if kind != "ref":
            self.fail(f"expected a value, found {text!r}")
        self.take()
        return str(json.loads(text[1:])) if text[1] == '"' else text[1:]

    def type(self) -> object:
        self.peek()
        match = _TYPE.match(self.text, self.position)
        if match is None:
            self.fail("expected a type")
        assert match is not None
        self.position = match.end()
        try:
            return parse_type(match.group())
        except ValueError as error:
            return self.fail(str(error))
