"""Files in the folder of a model whose vocabulary was cut: ids in them are renumbered, or they are dropped.

ids 3, 9, 50 stay: {"pad_token_id": 9, "vocab_size": 100}  ->  {"pad_token_id": 1, "vocab_size": 3}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

TOKENIZER = "tokenizer.json"
Files = Mapping[str, bytes]
# Other forms of the vocabulary, dropped: tokenizer.json replaces them.
_FORMS = {
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "bpe.codes", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
}  # fmt: skip
_WITH_IDS = {"config.json", "generation_config.json"}
_LISTS = {"suppress_tokens", "begin_suppress_tokens", "bad_words_ids"}


def tokenizer_name(files: Files) -> str | None:
    """The path of tokenizer.json, which older sentence-transformers keep in the encoder's subfolder."""
    return next((n for n in sorted(files, key=len) if _last(n) == TOKENIZER), None)


def lowers_texts(files: Files) -> bool:
    """Whether sentence-transformers lowercases texts before it tokenizes them."""
    configs = [n for n in files if _last(n).startswith("sentence_")]
    return any(_object(files[n]).get("do_lower_case") is True for n in configs)


def prompts(files: Files) -> list[str]:
    """The prompts that sentence-transformers prepends to texts."""
    by_name = _object(files.get("config_sentence_transformers.json", b"")).get("prompts")
    texts = by_name.values() if isinstance(by_name, dict) else ()
    return [p for p in texts if isinstance(p, str) and p]


def named_ids(files: Files) -> set[int]:
    """Ids in configs: of padding, of the beginning and end of texts …"""
    ids: set[int] = set()

    def see(number: int) -> int:
        ids.add(number)
        return number

    for name, data in files.items():
        if _last(name) in _WITH_IDS:
            _change_ids(_object(data), see)
    return ids


def renumbered(files: Files, old: list[int], size: int) -> dict[str, bytes]:
    """``files`` for a vocabulary cut from ``size`` to the ids ``old``, in the order of the new ones.
    tokenizer.json itself is returned unchanged."""
    new = {number: i for i, number in enumerate(old)}
    changed = {}
    for name, data in files.items():
        if _last(name) in _FORMS:
            continue
        config = _object(data) if _last(name) in {*_WITH_IDS, "tokenizer_config.json"} else {}
        if _last(name) in _WITH_IDS:
            _change_ids(config, lambda number: new.get(number, number))
            _change_sizes(config, size, len(old))
        elif isinstance(config.get("added_tokens_decoder"), dict):
            tokens = config["added_tokens_decoder"].items()
            config["added_tokens_decoder"] = {
                str(new[int(k)]): v for k, v in tokens if k.isdecimal() and int(k) in new
            }
        same = not config or config == _object(data)
        changed[name] = data if same else json.dumps(config, indent=2, ensure_ascii=False).encode()
    return changed


def _change_ids(config: Any, change: Callable[[int], int]) -> None:
    """Applies ``change``, in place, to all ids in a config and in nested ones."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key.endswith("_token_id") or key in _LISTS:
                config[key] = _changed(value, change)
            else:
                _change_ids(value, change)


def _changed(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    return change(value) if type(value) is int and value >= 0 else value


def _change_sizes(config: Any, before: int, after: int) -> None:
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "vocab_size" and value == before:
                config[key] = after
            _change_sizes(value, before, after)


def _last(name: str) -> str:
    return PurePosixPath(name).name


def _object(data: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(data)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
