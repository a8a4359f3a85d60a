"""Lines of Python's own library, each character labelled by Python's own tokenizer."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence
from functools import cache

import numpy as np

from tersor.models import corpus
from tersor.models.padding import padded

TAGS = ("none", "name", "keyword", "number", "string", "comment", "operator")
SYMBOLS = 97  # 0 pads; 1 to 95 are ASCII's printable characters; 96 is everything else.
SHORTEST, LONGEST = 16, 96  # characters of a line without its indentation
MODULES = {
    "train": (
        "argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "difflib", "doctest",
        "enum", "fractions", "functools", "heapq", "inspect", "ipaddress", "mailbox", "optparse",
        "pickle", "random",
    ),
    "calibration": ("subprocess",),
    "test": ("shutil", "statistics", "tarfile", "textwrap"),
}  # fmt: skip
Line = tuple[str, tuple[int, ...]]
Feed = dict[str, np.ndarray]


@cache
def lines(part: str) -> tuple[Line, ...]:
    """Text and tags of each line of a part's modules, in order, no line twice.

    Lines that touch a string of several lines are left out: nothing in them tells that they do.
    """
    found: dict[str, Line] = {}
    for source in (s for module in MODULES[part] for s in corpus.sources(module)):
        for text, tags in _tagged(source):
            start = len(text) - len(text.lstrip())
            text, tags = text.strip(), tags[start : len(text.rstrip())]
            if SHORTEST <= len(text) <= LONGEST:
                found.setdefault(text, (text, tags))
    return tuple(found.values())


def _tagged(source: str) -> list[Line]:
    text = source.splitlines()
    tags = [[0] * len(line) for line in text]
    torn: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (row, begin), (last, end) = token.start, token.end
        tag = _tag(token)
        if tag == "none":
            continue
        if row != last:
            torn.update(range(row, last + 1))
        else:
            tags[row - 1][begin:end] = [TAGS.index(tag)] * (end - begin)
    pairs = zip(text, tags, strict=True)
    return [(a, tuple(b)) for i, (a, b) in enumerate(pairs, 1) if i not in torn]


def _tag(token: tokenize.TokenInfo) -> str:
    kind = tokenize.tok_name[token.type]
    if kind == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if kind in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):
        return "string"
    known = {"NUMBER": "number", "STRING": "string", "COMMENT": "comment", "OP": "operator"}
    return known.get(kind, "none")


def encode(texts: Sequence[str]) -> Feed:
    """``input_ids``, i64[len(texts), longest], padded with zeros."""
    return {"input_ids": padded([[_symbol(c) for c in text] for text in texts])}


def _symbol(character: str) -> int:
    return ord(character) - 31 if " " <= character <= "~" else SYMBOLS - 1


def labels(found: Sequence[Line]) -> np.ndarray:
    """i64[len(found), longest] of tags; 0, which is also a blank's, where it is padded."""
    return padded([tags for _, tags in found])


def batches(found: Sequence[Line], size: int = 32) -> list[Feed]:
    """``found`` in their order, ``size`` at a time."""
    texts = [text for text, _ in found]
    return [encode(texts[i : i + size]) for i in range(0, len(texts), size)]


def calibration() -> list[Feed]:
    """64 lines of a module that is neither trained on nor tested, in batches of 8."""
    return batches(lines("calibration")[:64], 8)


def tested() -> tuple[Line, ...]:
    """About 500 lines, spread over the modules that only the test has."""
    found = lines("test")
    return found[:: max(1, len(found) // 500)]


def test_feeds() -> list[Feed]:
    """Those lines, in batches of 32."""
    return batches(tested())
