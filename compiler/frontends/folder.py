"""Files of a model folder that are copied next to the compiled model: tokenizer, configs and labels.

They keep their names in the folder (``1_Pooling/config.json``), so that programs that served the folder find
what they need. Weights, code and files that are not read at run time are left out.
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
# Configs of modules in the folder itself, and of their tokenizers.
_MODULE_CONFIG = re.compile(
    r"(sentence_[a-z-]+|wordembedding|(whitespace|phrase)tokenizer)_config\.json\Z"
)


def companion_files(directory: Path) -> dict[str, bytes]:
    """The files to copy, from ``directory`` and the folders of its modules, by path relative to it."""
    files = {p.name: p.read_bytes() for p in _files(directory) if _is_kept(p.name)}
    for module in _modules(files.get(MODULES, b"")):
        for path in _files(directory.joinpath(*module.parts)):
            if path.suffix == ".json" or path.name in _KEPT:
                files[(module / path.name).as_posix()] = path.read_bytes()
    return files


def module_folders(directory: Path) -> list[Path]:
    """``directory`` and the folders of its modules."""
    path = directory / MODULES
    modules = _modules(path.read_bytes()) if path.is_file() else []
    return [directory, *(directory.joinpath(*module.parts) for module in modules)]


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    # An index of sharded weights names files that are not copied.
    return sorted(
        p for p in directory.iterdir() if p.is_file() and not p.name.endswith(".index.json")
    )


def _is_kept(name: str) -> bool:
    return name in _KEPT or _MODULE_CONFIG.match(name) is not None


def _modules(data: bytes) -> list[PurePosixPath]:
    """The folders of modules in ``data``, a modules.json, except the folder itself."""
    try:
        paths = [PurePosixPath(entry["path"]) for entry in json.loads(data or b"[]")]
    except (ValueError, TypeError, KeyError):  # Reported when the model is read.
        return []
    return [p for p in paths if p.parts and not p.is_absolute() and ".." not in p.parts]


def labels(files: dict[str, bytes]) -> dict[str, str]:
    """The class labels in the model's config, as metadata of a graph: ``id2label``, a JSON object of
    labels by number; empty if there are none."""
    configs = [data for name, data in files.items() if PurePosixPath(name).name == "config.json"]
    for config in map(_object, configs):
        by_number = config.get(LABELS)
        if isinstance(by_number, dict) and by_number:
            ordered = dict(sorted(by_number.items(), key=lambda item: (len(item[0]), item[0])))
            return {LABELS: json.dumps(ordered, ensure_ascii=False)}
    return {}


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; empty if ``data`` is something else."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
