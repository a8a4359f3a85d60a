"""Real inputs: paragraphs of the standard library's docstrings, by the subject of their module."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tersor.models import corpus
from tersor.models.minilm.data import encode

Feed = dict[str, np.ndarray]

SUBJECTS = {
    "networks": ("http", "urllib", "socket", "ssl", "ipaddress", "smtplib", "imaplib", "ftplib",
                 "wsgiref", "xmlrpc", "socketserver", "poplib"),
    "concurrency": ("asyncio", "threading", "multiprocessing", "concurrent", "subprocess", "queue",
                    "selectors", "sched"),
    "mail": ("email", "mailbox"),
    "testing": ("unittest", "doctest", "pdb", "bdb", "traceback", "timeit", "trace"),
    "numbers": ("_pydecimal", "statistics", "fractions", "random", "datetime", "_pydatetime",
                "numbers", "calendar"),
    "language": ("importlib", "inspect", "ast", "typing", "pydoc", "enum", "dis", "functools",
                 "contextlib", "dataclasses", "abc", "types"),
    "files": ("xml", "json", "csv", "configparser", "tarfile", "zipfile", "shutil", "pathlib",
              "_pyio", "tempfile", "codecs", "gzip", "fileinput"),
}  # fmt: skip
TEST = 640
CALIBRATION = 64


@dataclass(frozen=True)
class Examples:
    """Paragraphs and their subjects' numbers, in the order of SUBJECTS."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@cache
def examples() -> tuple[Examples, Examples]:
    """What to train on, and the held-out rest to test on. What two subjects both say is neither's."""
    owners: dict[str, set[int]] = {}
    for label, modules in enumerate(SUBJECTS.values()):
        for module in modules:
            for text in corpus.paragraphs(module):
                owners.setdefault(text, set()).add(label)
    rows = sorted((text, label) for text, (label, *others) in owners.items() if not others)
    random.Random(0).shuffle(rows)
    return _examples(rows[TEST:]), _examples(rows[:TEST])


def _examples(rows: Sequence[tuple[str, int]]) -> Examples:
    texts, labels = zip(*rows, strict=True)
    return Examples(texts, labels)


def calibration() -> list[Feed]:
    """Paragraphs of the training set, in batches of 8."""
    texts = examples()[0].texts[:CALIBRATION]
    return [encode(texts[i : i + 8]) for i in range(0, len(texts), 8)]


def test_feeds() -> list[Feed]:
    """The held-out paragraphs in their order, in batches of 32."""
    texts = examples()[1].texts
    return [encode(texts[i : i + 32]) for i in range(0, len(texts), 32)]
