"""Hugging Face's ``tokenizer.json`` with fewer entries: texts that use only what is kept are cut into the
same pieces, under new ids, which count what is left in the old order.

What stays beside the ids that are used, so that nothing else changes for these texts:

    added and special tokens, those of the post-processor, the padding, the unknown token: all
    WordPiece   nothing: the longest piece that fits is kept, and no longer one has come up (words that
                are unknown since they go on badly need what they begin with: :func:`first_pieces`)
    BPE         the pieces that merges make on the way to one that is kept; where there is no unknown
                token, all single symbols (bytes), so that any text still has ids
    Unigram     the single letters of what is kept, and the piece of the lowest score, to which the
                score of the unknown is tied
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
    """Hugging Face's ``Tokenizer`` of the file, without truncation and padding.

    Raises:
        Unsupported: the package is not installed.
        InvalidModel: it is no such file.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise Unsupported(
            "texts need the package 'tokenizers': pip install tokenizers, or give ids"
        ) from None
    try:
        opened = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # It raises nothing more precise.
        raise InvalidModel(f"the tokenizer cannot be read: {error}") from None
    opened.no_truncation()
    opened.no_padding()
    return opened


def trim_tokenizer(data: bytes, used: Iterable[int]) -> tuple[bytes, list[int]]:
    """The file without what ``used`` ids do not need, and the old id of each new one, ascending.

    Raises:
        InvalidModel: it is no such file.
        InvalidOption: an id that it does not have.
        Unsupported: a kind of model or post-processor that is not known here.
    """
    held = _read(data)
    model, ids = held["model"], _vocabulary(held["model"])
    pieces = {number: piece for piece, number in ids.items()}
    added = {token["id"]: token["content"] for token in held.get("added_tokens") or []}
    wanted = set(used)
    if outside := wanted - pieces.keys() - added.keys():
        raise InvalidOption(f"id {min(outside)} is not in the tokenizer")
    wanted |= added.keys() | _named(held, ids)
    taken = {pieces[number] for number in wanted if number in pieces}
    wanted |= {ids[piece] for piece in _needed(model, ids, taken) if piece in ids}
    old = sorted(wanted)
    new = {number: i for i, number in enumerate(old)}
    _rewrite_model(model, ids, new)
    for token in held.get("added_tokens") or []:
        token["id"] = new[token["id"]]
    if held.get("padding"):
        held["padding"]["pad_id"] = new[held["padding"]["pad_id"]]
    _post_processor(held.get("post_processor"), new.__getitem__)
    return json.dumps(held, ensure_ascii=False, indent=2).encode(), old


def known_ids(data: bytes) -> set[int]:
    """All ids of the file."""
    held = _read(data)
    added = {token["id"] for token in held.get("added_tokens") or []}
    return added | set(_vocabulary(held["model"]).values())


def lowercased(data: bytes) -> bytes:
    """The file with texts put in lower case before all else."""
    held = _read(data)
    given = held.get("normalizer")
    inner = given["normalizers"] if given and given["type"] == "Sequence" else [given]
    parts = [{"type": "Lowercase"}, *(part for part in inner if part)]
    if parts[0] in parts[1:]:
        return data
    held["normalizer"] = {"type": "Sequence", "normalizers": parts}
    return json.dumps(held, ensure_ascii=False, indent=2).encode()


def unknown_id(data: bytes) -> int | None:
    """The id of what it does not know; None where it knows everything."""
    model = _read(data)["model"]
    if model["type"] == "Unigram":
        number: int | None = model.get("unk_id")
        return number
    return _vocabulary(model).get(model.get("unk_token") or "")


def first_pieces(data: bytes, words: Iterable[str]) -> set[int]:
    """Ids of what WordPiece finds in ``words`` up to where nothing fits: with other beginnings, a word
    that was unknown might become known. Other models need none."""
    model = _read(data)["model"]
    if model["type"] != "WordPiece":
        return set()
    ids, found = _vocabulary(model), set()
    for word in set(words):
        start = 0
        while start < len(word) <= model["max_input_chars_per_word"]:
            before = model["continuing_subword_prefix"] if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if before + word[start:e] in ids), None)
            if end is None:
                break
            found.add(ids[before + word[start:end]])
            start = end
    return found


def _read(data: bytes) -> Json:
    try:
        held = json.loads(data)
    except ValueError as error:
        raise InvalidModel(f"the tokenizer is not JSON: {error}") from None
    if not isinstance(held, dict) or not isinstance(held.get("model"), dict):
        raise InvalidModel("the tokenizer is no tokenizer.json: it has no model")
    kind = held["model"].get("type")
    if kind not in _NEEDED:
        raise Unsupported(f"a tokenizer of type {kind}; known are {', '.join(_NEEDED)}")
    return held


def _vocabulary(model: Json) -> Ids:
    if model["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _named(held: Json, ids: Ids) -> set[int]:
    """Ids that the file itself names."""
    model, found = held["model"], set()
    if held.get("padding"):
        found.add(held["padding"]["pad_id"])
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        found.add(model["unk_id"])
    if model.get("unk_token") in ids:
        found.add(ids[model["unk_token"]])
    if model.get("byte_fallback"):
        found |= {
            ids[piece] for piece in (f"<0x{byte:02X}>" for byte in range(256)) if piece in ids
        }

    def see(number: int) -> int:
        found.add(number)
        return number

    _post_processor(held.get("post_processor"), see)
    return found


def _post_processor(part: Json | None, change: Callable[[int], int]) -> None:
    """Changes, in place, all ids that a post-processor names."""
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


# -- what kept pieces need -------------------------------------------------------------------------


def _needed(model: Json, ids: Ids, taken: Collection[str]) -> set[str]:
    """Pieces that have to stay for ``taken`` to be made as before."""
    return _NEEDED[model["type"]](model, ids, taken)


def _of_bpe(model: Json, ids: Ids, taken: Collection[str]) -> set[str]:
    if model.get("continuing_subword_prefix"):
        raise Unsupported("a BPE tokenizer with a prefix on pieces inside of words")
    merges = [_merged(merge) for merge in model["merges"]]
    ranks = {(left, right): i for i, (left, right, _) in reversed(list(enumerate(merges)))}
    suffix = model.get("end_of_word_suffix") or ""
    needed = {p for piece in taken for p in _steps(_symbols(piece, suffix), ranks)}
    if model.get("unk_token") is None:
        needed |= ids.keys() - {made for _, _, made in merges}
    return needed


def _merged(merge: str | list[str]) -> tuple[str, str, str]:
    """(left, right, what they make)."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def _symbols(piece: str, suffix: str) -> list[str]:
    """What merging begins with."""
    ends = bool(suffix) and piece.endswith(suffix) and len(piece) > len(suffix)
    letters = list(piece.removesuffix(suffix)) if ends else list(piece)
    return [*letters[:-1], letters[-1] + suffix] if ends else letters


def _steps(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All that merging ``symbols`` makes: at each step the pair of the lowest rank, the leftmost first.
    (Within a longer word they merge in the same order: no merge crossed the ends of a piece.)"""
    found = set(symbols)
    while len(symbols) > 1:
        pairs = enumerate(pairwise(symbols))
        known = [(ranks[pair], i) for i, pair in pairs if pair in ranks]
        if not known:
            break
        at = min(known)[1]
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]
        found.add(symbols[at])
    return found


def _of_unigram(model: Json, ids: Ids, taken: Collection[str]) -> set[str]:
    lowest = min(model["vocab"], key=lambda item: item[1])[0]
    return {lowest}.union(*taken)


def _nothing(model: Json, ids: Ids, taken: Collection[str]) -> set[str]:
    return set()


_NEEDED: dict[str, Callable[[Json, Ids, Collection[str]], set[str]]] = {
    "WordPiece": _nothing,
    "WordLevel": _nothing,
    "BPE": _of_bpe,
    "Unigram": _of_unigram,
}
