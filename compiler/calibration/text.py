"""Texts as calibration inputs, tokenized by the tokenizer in the model's folder.

    a cat               input_ids  101 1037 4937  102    0      attention_mask  1 1 1 1 0
    the red cat                    101 1996 2417 4937  102                      1 1 1 1 1

A ``.txt`` file has a text in each line; a ``.jsonl`` file a JSON string, ``{"text": …}``, or a pair of texts,
``["…", "…"]`` or ``{"text": …, "text_pair": …}``. Empty lines are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tersor.analysis.feeds import table_rows
from tersor.analysis.match import dims
from tersor.calibration.arrays import Arrays
from tersor.calibration.samples import BATCH, check_whole
from tersor.errors import InvalidOption, TersorError
from tersor.frontends.folder import companion_files
from tersor.ir import Graph, TensorType, Value
from tersor.trimming import model_files
from tersor.trimming.tokenizers import lowercased, open_tokenizer

SUFFIXES = (".txt", ".jsonl")
NO_LIMIT = 1_000_000  # Tokenizers without a limit state 1e30.
# Names of inputs in transformers, and before it.
IDS, MASKS = {"input_ids"}, {"attention_mask", "input_mask"}
TYPES, POSITIONS = {"token_type_ids", "segment_ids"}, {"position_ids"}
# Their position ids start after the padding's id.
_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "mvp"}
Text = str | tuple[str, str]


def text_batches(
    path: Path, graph: Graph, batch: int | None, model: Any, files: Mapping[str, bytes]
) -> Iterator[Arrays]:
    """``batch`` texts (8) at a time, padded to the longest of the batch or to the model's fixed length.

    Args:
        model: a path whose folder is searched for the tokenizer if ``files`` has none.

    Raises:
        InvalidOption: the file or the tokenizer cannot be used, or the model takes other inputs.
    """
    tokens = _Tokens.of(path, graph, _tokenizer_files(path, model, files))
    if tokens.batch is not None:
        check_whole(sum(1 for _ in read_texts(path)), "texts", tokens.batch, batch, path)
    texts = read_texts(path)
    empty = True
    while some := list(islice(texts, tokens.batch or batch or BATCH)):
        yield tokens(some)
        empty = False
    if empty:
        raise InvalidOption(f"{path}: contains no texts")


def read_texts(path: Path) -> Iterator[Text]:
    """The texts and pairs of texts of a file.

    Raises:
        InvalidOption: the file cannot be read, or a line is not a text.
    """
    if path.exists() and not path.is_file():
        raise InvalidOption(f"{path}: not a regular file")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and path.suffix == ".jsonl":
                    yield _of_json(line, f"{path}, line {number}")
                elif line.strip():
                    yield line.strip()
    except OSError as error:
        raise InvalidOption(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidOption(f"cannot read {path}: it is not UTF-8") from None


def _of_json(line: str, where: str) -> Text:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidOption(f"{where}: not JSON") from None
    if isinstance(parsed, dict):
        parsed = [parsed.get("text"), *([parsed["text_pair"]] if "text_pair" in parsed else [])]
    texts = parsed if isinstance(parsed, list) else [parsed]
    if len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise InvalidOption(
            f'{where}: write a string, {{"text": "…"}}, or a pair, {{"text": "…", "text_pair": "…"}}'
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _tokenizer_files(path: Path, model: Any, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The files of the model's folder; for an ONNX file, of its folder or the one above (``onnx/…``)."""
    folders: list[Path] = []
    if isinstance(model, str | Path):
        own = Path(model)
        folders = [own] if own.is_dir() else [own.absolute().parent, own.absolute().parent.parent]
    for folder in () if model_files.tokenizer_name(files) else folders:
        files = companion_files(folder)
        if model_files.tokenizer_name(files):
            break
    if model_files.tokenizer_name(files) is None:
        where = (
            f"there is no {model_files.TOKENIZER} in {folders[0]}"
            if folders
            else "the model has none"
        )
        raise InvalidOption(
            f"{path}: texts need the model's tokenizer, and {where}; put it next to the model, or give "
            "batches of ids"
        )
    return files


@dataclass(frozen=True)
class _Tokens:
    """Tokenizes texts into the inputs of a graph.

    Attributes:
        path: the file of the texts, for messages.
        tokenizer: a Hugging Face tokenizer.
        inputs: by kind: "ids", "mask", "types", "positions".
        batch: the fixed number of texts per run; None: any number.
    """

    path: Path
    tokenizer: Any
    inputs: Mapping[str, Value]
    batch: int | None

    @staticmethod
    def of(path: Path, graph: Graph, files: Mapping[str, bytes]) -> _Tokens:
        inputs = _inputs(path, graph)
        shape = dims(inputs["ids"]) or ()
        batch, length = (d if isinstance(d, int) else None for d in (*shape, None, None)[:2])
        return _Tokens(path, _tokenizer(path, files, length), inputs, batch)

    def __call__(self, texts: list[Text]) -> Arrays:
        encoded = self.tokenizer.encode_batch(texts)
        ids = np.array([e.ids for e in encoded], np.int64)
        rows = table_rows(self.inputs["ids"])
        if rows and ids.max(initial=0) >= rows:
            raise InvalidOption(
                f"{self.path}: the tokenizer gives id {ids.max()}, but the model has {rows} embeddings: "
                "use the model's own tokenizer"
            )
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        arrays = {
            "ids": ids,
            "mask": mask,
            "types": np.array([e.type_ids for e in encoded], np.int64),
            "positions": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        }
        return {
            v.name: arrays[kind].astype(v.tensor.dtype.numpy) for kind, v in self.inputs.items()
        }


def _inputs(path: Path, graph: Graph) -> dict[str, Value]:
    """The inputs of a graph by kind. The only input with another name is taken for the ids if it takes
    integers [batch, length]."""
    kinds = {"ids": IDS, "mask": MASKS, "types": TYPES, "positions": POSITIONS}
    by_kind: dict[str, Value] = {}
    others = []
    for value in graph.inputs:
        name = value.name.split(":")[0].lower()
        kind = next((kind for kind, names in kinds.items() if name in names), None)
        if kind is None or kind in by_kind:
            others.append(value)
        else:
            by_kind[kind] = value
    if "ids" not in by_kind and len(others) == 1 and _takes_ids(others[0]):
        by_kind["ids"] = others.pop()
    if others or "ids" not in by_kind:
        names = ", ".join(v.name for v in others) or ", ".join(v.name for v in graph.inputs)
        raise InvalidOption(
            f"{path}: texts give input_ids, attention_mask, token_type_ids and position_ids; the model takes "
            f"{names}{' too' if 'ids' in by_kind else ''}: give arrays (.npz)"
        )
    return by_kind


def _takes_ids(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and type.dtype.is_integer and len(type.dims or ()) == 2


def _tokenizer(path: Path, files: Mapping[str, bytes], length: int | None) -> Any:
    """The tokenizer as the folder's files configure it: it truncates to the model's limit and pads to
    ``length``, or to the longest text."""
    name = model_files.tokenizer_name(files)
    assert name is not None
    data = lowercased(files[name]) if model_files.lowers_texts(files) else files[name]
    try:
        tokenizer = open_tokenizer(data)
    except TersorError as error:
        raise InvalidOption(f"{path}: {error}") from None
    written, settings = _json(files[name]), _config(files, "tokenizer_config.json")
    longest = length or _longest(files, written)
    if longest is not None:
        tokenizer.enable_truncation(longest, direction=settings.get("truncation_side", "right"))
    padding = written.get("padding") or {}
    side = settings.get("padding_side") or str(padding.get("direction", "right")).lower()
    pad = _padding_id(files, written, tokenizer)
    tokenizer.enable_padding(direction=side, pad_id=pad, length=length)
    return tokenizer


def _longest(files: Mapping[str, bytes], tokenizer: Mapping[str, Any]) -> int | None:
    """The largest number of tokens, by the first that states it: sentence-transformers or the tokenizer;
    never more than the model has positions for."""
    config = _config(files, "config.json")
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and config.get("model_type") in _OFFSET:
        positions -= int(config.get("pad_token_id") or 0) + 1
    sentences = [_json(data) for name, data in files.items() if _last(name).startswith("sentence_")]
    stated = [
        *(one.get("max_seq_length") for one in sentences),
        _config(files, "tokenizer_config.json").get("model_max_length"),
        (tokenizer.get("truncation") or {}).get("max_length"),
    ]
    limit = next((n for n in stated if _is_length(n)), None)
    return min(
        (int(n) for n in (limit, positions) if n is not None and _is_length(n)), default=None
    )


def _is_length(n: Any) -> bool:
    return isinstance(n, int | float) and 0 < n < NO_LIMIT


def _padding_id(files: Mapping[str, bytes], tokenizer: Mapping[str, Any], opened: Any) -> int:
    if padding := tokenizer.get("padding"):
        return int(padding.get("pad_id", 0))
    token = _config(files, "tokenizer_config.json").get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    number = opened.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        number = _config(files, "config.json").get("pad_token_id")
    return number if isinstance(number, int) and number >= 0 else 0


def _config(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The folder's config file of this name, or that of its encoder."""
    names = sorted((n for n in files if _last(n) == name and "Pooling" not in n), key=len)
    return _json(files[names[0]]) if names else {}


def _json(data: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _last(name: str) -> str:
    return PurePosixPath(name).name
