"""Hugging Face's ``tokenizer.json`` with fewer entries: texts that use only those are split into the same
pieces, with new ids in the old order.

Besides the ids in use, these stay, so that nothing else changes for such texts:

    all         added and special tokens, those of the post-processor, the padding, the unknown token
    WordPiece   nothing: matching is greedy, and no longer piece appears (but the first pieces of a word
                that ends unknown are needed: :func:`first_pieces`)
    BPE         intermediate results of the merges that lead to a kept piece; without an unknown token also
                all single symbols (bytes), so that any text still has ids
    Unigram     the single letters of kept pieces, and the piece with the lowest score, from which the
                score of the unknown token is derived
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from tersor.errors import InvalidModel, InvalidOption, Unsupported

Json = dict[str, Any]
Ids = dict[str, int]  # Id of each piece.


def open_tokenizer(data: bytes) -> Any:
    """Hugging Face's ``Tokenizer`` for the file, without truncation and padding.

    Raises:
        Unsupported: the package is not installed.
        InvalidModel: it is not a tokenizer.json.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise Unsupported(
            "texts need the package 'tokenizers': pip install tokenizers, or give ids"
        ) from None
    try:
        opened = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # The package raises bare Exceptions.
        raise InvalidModel(f"the tokenizer cannot be read: {error}") from None
    opened.no_truncation()
    opened.no_padding()
    return opened


def trim_tokenizer(data: bytes, used: Iterable[int]) -> tuple[bytes, list[int]]:
    """The file cut to what the ids ``used`` need, and the old id of each new one, ascending.

    Raises:
        InvalidModel: it is not a tokenizer.json.
        InvalidOption: an id that is not in the file.
        Unsupported: an unknown kind of model or post-processor.
    """
    config = _read(data)
    model, ids = config["model"], _vocabulary(config["model"])
    pieces = {number: piece for piece, number in ids.items()}
    added = {token["id"]: token["content"] for token in config.get("added_tokens") or []}
    wanted = set(used)
    if outside := wanted - pieces.keys() - added.keys():
        raise InvalidOption(f"id {min(outside)} is not in the tokenizer")
    wanted |= added.keys() | _special_ids(config, ids)
    kept = {pieces[number] for number in wanted if number in pieces}
    wanted |= {ids[piece] for piece in _needed(model, ids, kept) if piece in ids}
    old = sorted(wanted)
    new = {number: i for i, number in enumerate(old)}
    _rewrite_model(model, ids, new)
    for token in config.get("added_tokens") or []:
        token["id"] = new[token["id"]]
    if config.get("padding"):
        config["padding"]["pad_id"] = new[config["padding"]["pad_id"]]
    _post_processor(config.get("post_processor"), new.__getitem__)
    return json.dumps(config, ensure_ascii=False, indent=2).encode(), old


def known_ids(data: bytes) -> set[int]:
    """All ids of the file."""
    config = _read(data)
    added = {token["id"] for token in config.get("added_tokens") or []}
    return added | set(_vocabulary(config["model"]).values())


def lowercased(data: bytes) -> bytes:
    """The file with a Lowercase normalizer before all others."""
    config = _read(data)
    given = config.get("normalizer")
    inner = given["normalizers"] if given and given["type"] == "Sequence" else [given]
    parts = [{"type": "Lowercase"}, *(part for part in inner if part)]
    if parts[0] in parts[1:]:
        return data
    config["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return json.dumps(config, ensure_ascii=False, indent=2).encode()


def unknown_id(data: bytes) -> int | None:
    """The id of the unknown token; None if there is none."""
    model = _read(data)["model"]
    if model["type"] == "Unigram":
        number: int | None = model.get("unk_id")
        return number
    return _vocabulary(model).get(model.get("unk_token") or "")


def first_pieces(data: bytes, words: Iterable[str]) -> set[int]:
    """Ids of the pieces that WordPiece matches in ``words`` before it fails: without them, a word that was
    unknown might be split otherwise and become known. Other models need none."""
    model = _read(data)["model"]
    if model["type"] != "WordPiece":
        return set()
    ids, matched = _vocabulary(model), set()
    for word in set(words):
        start = 0
        while start < len(word) <= model["max_input_chars_per_word"]:
            before = model["continuing_subword_prefix"] if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if before + word[start:e] in ids), None)
            if end is None:
                break
            matched.add(ids[before + word[start:end]])
            start = end
    return matched


def _read(data: bytes) -> Json:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise InvalidModel(f"the tokenizer is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InvalidModel("not a tokenizer.json: it has no model")
    kind = config["model"].get("type")
    if kind not in _NEEDED:
        raise Unsupported(f"a tokenizer of type {kind}; supported are {', '.join(_NEEDED)}")
    return config


def _vocabulary(model: Json) -> Ids:
    if model["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _special_ids(config: Json, ids: Ids) -> set[int]:
    """Ids that other parts of the file refer to."""
    model, special = config["model"], set()
    if config.get("padding"):
        special.add(config["padding"]["pad_id"])
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        special.add(model["unk_id"])
    if model.get("unk_token") in ids:
        special.add(ids[model["unk_token"]])
    if model.get("byte_fallback"):
        special |= {
            ids[piece] for piece in (f"<0x{byte:02X}>" for byte in range(256)) if piece in ids
        }

    def see(number: int) -> int:
        special.add(number)
        return number

    _post_processor(config.get("post_processor"), see)
    return special


def _post_processor(part: Json | None, change: Callable[[int], int]) -> None:
    """Applies ``change``, in place, to all ids in a post-processor."""
    if part is None or part["type"] == "ByteLevel":
        return
    if part["type"] == "Sequence":
        for inner in part["processors"]:
            _post_processor(inner, change)
    elif part["type"] == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [change(number) for number in token["ids"]]
    elif part["type"] in ("BertProcessing", "RobertaProcessing"):
        for name in ("sep", "cls"):
            part[name] = [part[name][0], change(part[name][1])]
    else:
        raise Unsupported(f"a tokenizer with the post-processor {part['type']}")


def _rewrite_model(model: Json, ids: Ids, new: Mapping[int, int]) -> None:
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        model["vocab"] = [item for i, item in enumerate(model["vocab"]) if i in new]
        return
    kept = {piece: new[number] for piece, number in ids.items() if number in new}
    model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        model["merges"] = [
            merge for merge in model["merges"] if all(p in kept for p in _merged(merge))
        ]


# -- pieces that kept ones depend on ---------------------------------------------------------------


def _needed(model: Json, ids: Ids, kept: Collection[str]) -> set[str]:
    """Pieces without which texts would not be split into those ``kept`` as before."""
    return _NEEDED[model["type"]](model, ids, kept)


def _needed_by_bpe(model: Json, ids: Ids, kept: Collection[str]) -> set[str]:
    if model.get("continuing_subword_prefix"):
        raise Unsupported("a BPE tokenizer with continuing_subword_prefix")
    merges = [_merged(merge) for merge in model["merges"]]
    ranks = {(left, right): i for i, (left, right, _) in reversed(list(enumerate(merges)))}
    suffix = model.get("end_of_word_suffix") or ""
    needed = {p for piece in kept for p in _merge_results(_symbols(piece, suffix), ranks)}
    if model.get("unk_token") is None:
        needed |= ids.keys() - {merged for _, _, merged in merges}
    return needed


def _merged(merge: str | list[str]) -> tuple[str, str, str]:
    """(left, right, their concatenation)."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def _symbols(piece: str, suffix: str) -> list[str]:
    """The symbols that merging starts from."""
    ends = bool(suffix) and piece.endswith(suffix) and len(piece) > len(suffix)
    letters = list(piece.removesuffix(suffix)) if ends else list(piece)
    return [*letters[:-1], letters[-1] + suffix] if ends else letters


def _merge_results(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All intermediate results of merging ``symbols``: at each step the leftmost pair of the lowest rank.
    (Within a longer word the order is the same: no merge crosses the ends of a piece.)"""
    results = set(symbols)
    while len(symbols) > 1:
        pairs = enumerate(pairwise(symbols))
        known = [(ranks[pair], i) for i, pair in pairs if pair in ranks]
        if not known:
            break
        at = min(known)[1]
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]
        results.add(symbols[at])
    return results


def _needed_by_unigram(model: Json, ids: Ids, kept: Collection[str]) -> set[str]:
    lowest = min(model["vocab"], key=lambda item: item[1])[0]
    return {lowest}.union(*kept)


def _nothing(model: Json, ids: Ids, kept: Collection[str]) -> set[str]:
    return set()


_NEEDED: dict[str, Callable[[Json, Ids, Collection[str]], set[str]]] = {
    "WordPiece": _nothing,
    "WordLevel": _nothing,
    "BPE": _needed_by_bpe,
    "Unigram": _needed_by_unigram,
}
