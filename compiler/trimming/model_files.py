"""Files beside a model whose vocabulary was cut: the ids in them are counted anew, or they go.

3, 9, 50 stay: {"pad_token_id": 9, "vocab_size": 100}  ->  {"pad_token_id": 1, "vocab_size": 3}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

TOKENIZER = "tokenizer.json"
Files = Mapping[str, bytes]
# Vocabularies in other forms than tokenizer.json, which stands for them all.
_FORMS = {
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "bpe.codes", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
}  # fmt: skip
_WITH_IDS = {"config.json", "generation_config.json"}
_LISTS = {"suppress_tokens", "begin_suppress_tokens", "bad_words_ids"}


def tokenizer_name(files: Files) -> str | None:
    """The name of the tokenizer's file; in an older folder of sentence-transformers it lies with the
    encoder."""
    return next((n for n in sorted(files, key=len) if _last(n) == TOKENIZER), None)


def lowers_texts(files: Files) -> bool:
    """Whether texts are put in lower case before the tokenizer gets them (sentence-transformers)."""
    configs = [n for n in files if _last(n).startswith("sentence_")]
    return any(_object(files[n]).get("do_lower_case") is True for n in configs)


def prompts(files: Files) -> list[str]:
    """What sentence-transformers puts before texts."""
    found = _object(files.get("config_sentence_transformers.json", b"")).get("prompts")
    return (
        [p for p in found.values() if isinstance(p, str) and p] if isinstance(found, dict) else []
    )


def named_ids(files: Files) -> set[int]:
    """Ids that configs name: of the padding, of the beginning and end of texts …"""
    found: set[int] = set()

    def see(number: int) -> int:
        found.add(number)
        return number

    for name, data in files.items():
        if _last(name) in _WITH_IDS:
            _change_ids(_object(data), see)
    return found


def renumbered(files: Files, old: list[int], size: int) -> dict[str, bytes]:
    """``files`` for a vocabulary of the ids ``old``, in the order of the new ones, of ``size`` before; the
    tokenizer's own file is left as it is."""
    new = {number: i for i, number in enumerate(old)}
    made = {}
    for name, data in files.items():
        if _last(name) in _FORMS:
            continue
        held = _object(data) if _last(name) in {*_WITH_IDS, "tokenizer_config.json"} else {}
        if _last(name) in _WITH_IDS:
            _change_ids(held, lambda number: new.get(number, number))
            _change_sizes(held, size, len(old))
        elif isinstance(held.get("added_tokens_decoder"), dict):
            tokens = held["added_tokens_decoder"].items()
            held["added_tokens_decoder"] = {
                str(new[int(k)]): v for k, v in tokens if k.isdecimal() and int(k) in new
            }
        changed = held != _object(data) if held else False
        made[name] = json.dumps(held, indent=2, ensure_ascii=False).encode() if changed else data
    return made


def _change_ids(held: Any, change: Callable[[int], int]) -> None:
    """Changes, in place, all ids in a config and in configs within it."""
    if isinstance(held, dict):
        for key, value in held.items():
            if key.endswith("_token_id") or key in _LISTS:
                held[key] = _changed(value, change)
            else:
                _change_ids(value, change)


def _changed(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return change(value) if type(value) is int and value >= 0 else value


def _change_sizes(held: Any, before: int, after: int) -> None:
    if isinstance(held, dict):
        for key, value in held.items():
            if key == "vocab_size" and value == before:
                held[key] = after
            _change_sizes(value, before, after)


def _last(name: str) -> str:
    return PurePosixPath(name).name


def _object(data: bytes) -> dict[str, Any]:
    try:
        held = json.loads(data)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}
