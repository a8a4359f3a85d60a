"""What of a model folder belongs beside the compiled model: its tokenizer, configs and labels.

They are kept as they are, under their names in the folder (``1_Pooling/config.json``), so that what
served the folder has what it needs. Weights, code, and what nothing reads at run time are not kept.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from tersor.analysis.summary import LABELS

MODULES = "modules.json"
CONFIGS = ("config.json", "adapter_config.json")
_KEPT = {
    "config.json", "generation_config.json", MODULES, "config_sentence_transformers.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json",
}  # fmt: skip
# Configs of modules that lie in the folder itself, and of their tokenizers.
_OF_MODULES = re.compile(
    r"(sentence_[a-z-]+|wordembedding|(whitespace|phrase)tokenizer)_config\.json\Z"
)


def files_beside(directory: Path) -> dict[str, bytes]:
    """The files to keep, by name from ``directory`` on; those of its modules in their folders too."""
    found = {p.name: p.read_bytes() for p in _files(directory) if _is_kept(p.name)}
    for inside in _modules(found.get(MODULES, b"")):
        for path in _files(directory.joinpath(*inside.parts)):
            if path.suffix == ".json" or path.name in _KEPT:
                found[(inside / path.name).as_posix()] = path.read_bytes()
    return found


def places(directory: Path) -> list[Path]:
    """The folders of its modules, itself the first."""
    listed = directory / MODULES
    inside = _modules(listed.read_bytes()) if listed.is_file() else []
    return [directory, *(directory.joinpath(*path.parts) for path in inside)]


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    # The index of weights in parts names files that do not go along.
    return sorted(
        p for p in directory.iterdir() if p.is_file() and not p.name.endswith(".index.json")
    )


def _is_kept(name: str) -> bool:
    return name in _KEPT or _OF_MODULES.match(name) is not None


def _modules(listed: bytes) -> list[PurePosixPath]:
    """The folders that modules.json names, but for the folder itself."""
    try:
        paths = [PurePosixPath(entry["path"]) for entry in json.loads(listed or b"[]")]
    except (ValueError, TypeError, KeyError):  # Who read the model has said so already.
        return []
    return [p for p in paths if p.parts and not p.is_absolute() and ".." not in p.parts]


def labels(files: dict[str, bytes]) -> dict[str, str]:
    """The labels that the model's config tells, as metadata of a graph: ``id2label``, JSON of label by
    number; nothing where there are none, or only numbers in the place of names."""
    named = [data for name, data in files.items() if PurePosixPath(name).name == "config.json"]
    for config in map(_object, named):
        found = config.get(LABELS)
        if isinstance(found, dict) and found:
            ordered = dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))
            return {LABELS: json.dumps(ordered, ensure_ascii=False)}
    return {}


def _object(data: bytes) -> dict[str, Any]:
    try:
        held = json.loads(data)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}
