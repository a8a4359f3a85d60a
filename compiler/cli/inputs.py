"""Parsing of command-line values: paths, ``key=value`` pairs, sizes, shapes. Checked before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tersor.errors import InvalidOption


def check_output(path: Path, model: Path) -> None:
    """Checks that ``path`` can be written, and that this does not overwrite the input.

    Raises:
        InvalidOption: why it cannot.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist; create it first"
        raise InvalidOption(f"cannot write {path}: {folder} {state}")
    written = path if path.is_dir() else folder
    if not os.access(written, os.W_OK | os.X_OK):
        raise InvalidOption(f"cannot write {path}: no permission to write in {written}")
    if path.exists() and model.exists() and path.samefile(model):
        raise InvalidOption(f"cannot write {path}: it is the input; choose another path")
    if path.suffix == ".onnx":
        if path.is_dir():
            raise InvalidOption(f"cannot write {path}: it is a folder; choose another path")
    elif path.exists() and not (path / "manifest.json").exists():
        raise InvalidOption(
            f"cannot write {path}: it exists and is not an artifact; choose another path, "
            "or one that ends in .onnx"
        )


def vocabulary(path: Path, out: Path, calibration: Path | None) -> list[str]:
    """The texts of a file, one per line, that a vocabulary is trimmed to.

    Raises:
        InvalidOption: the file cannot be read, or other arguments are incompatible with new token ids.
    """
    if out.suffix == ".onnx":
        raise InvalidOption(
            f"--vocabulary renumbers token ids, and {out} would lack the tokenizer to match; "
            "choose a path that does not end in .onnx"
        )
    if calibration is not None and calibration.suffix not in (".txt", ".jsonl"):
        raise InvalidOption(
            f"--vocabulary renumbers token ids, and {calibration} has the old ones; give texts "
            "(.txt, .jsonl)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidOption(f"cannot read {path}: it is not UTF-8") from None
    return [line for line in text.splitlines() if line.strip()]


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """``key=value`` texts as a mapping.

    Raises:
        InvalidOption: one without ``=``, or a key given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InvalidOption(f"{option} {text!r}: write key=value")
        if key.strip() in values:
            raise InvalidOption(f"{option} {text!r}: {key.strip()} is given twice")
        values[key.strip()] = value.strip()
    return values


def sizes(texts: Sequence[str], option: str = "--size") -> list[dict[str, int]] | None:
    """``batch=8,sequence=128`` texts as mappings; None if there are none.

    Raises:
        InvalidOption: not a list of name=integer.
    """
    parsed = []
    for text in texts:
        given = pairs(text.split(","), option)
        if not all(re.fullmatch(r"\d{1,9}", v) for v in given.values()):
            raise InvalidOption(
                f"{option} {text!r}: write name=integer, as in batch=8,sequence=128"
            )
        parsed.append({k: int(v) for k, v in given.items()})
    return parsed or None


def shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """``name=8x128`` texts as shapes by name.

    Raises:
        InvalidOption: not of that form.
    """
    parsed = {}
    for name, text in pairs(texts, "--shape").items():
        if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
            raise InvalidOption(f"--shape {name}={text}: write the dims as in {name}=8x128")
        parsed[name] = tuple(map(int, text.split("x")))
    return parsed
