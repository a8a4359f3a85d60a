"""Hugging Face model directories: config.json, safetensors, and a tokenizer beside them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from tersor.errors import InvalidModel, Unsupported

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_pretrained(directory: str | Path) -> tuple[Any, Path | None]:
    """The model of a directory, in evaluation mode, and the path of its tokenizer file, if any.

    Nothing is downloaded, no code of the directory is run, and weights are read from safetensors only
    (pickles can run code). The class is the first of ``architectures`` that transformers has.

    Raises:
        InvalidModel: no config or weights in it, or a broken config.
        Unsupported: pickled weights; an architecture that transformers does not have; transformers is
            not installed.
    """
    directory = Path(directory)
    config = _config(directory)
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
        if pickles:
            raise Unsupported(
                f"{directory}: {pickles[0]} is a pickle, which can run code: save it as safetensors "
                "(save_pretrained does)"
            )
        raise InvalidModel(f"{directory}: no *.safetensors in it")
    model = _class_of(config, directory).from_pretrained(
        directory, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    tokenizer = next((directory / n for n in TOKENIZERS if (directory / n).is_file()), None)
    return model.eval(), tokenizer


def text_inputs(model: Any) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs and dynamic shapes for a model of token ids: ``input_ids`` and, where its forward
    takes one, ``attention_mask``, both i64[batch, sequence].

    Raises:
        Unsupported: its forward takes no ``input_ids``.
    """
    import torch

    taken = inspect.signature(model.forward).parameters
    if "input_ids" not in taken:
        raise Unsupported(f"{type(model).__name__} takes no input_ids: give example_inputs")
    names = [n for n in ("input_ids", "attention_mask") if n in taken]
    # Sizes that no model has as a constant of its own, so that tracing does not take them for one.
    examples = {n: torch.ones((3, 17), dtype=torch.long) for n in names}
    return examples, {n: {0: "batch", 1: "sequence"} for n in names}


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise InvalidModel(f"{directory}: no config.json in it, so not a model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidModel(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InvalidModel(f"{path}: not a JSON object")
    return config


def _class_of(config: dict[str, Any], directory: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise Unsupported("model directories need the package transformers") from None
    names = config.get("architectures") or []
    for name in names:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if names:
        raise Unsupported(f"{directory}: transformers has no {', '.join(map(str, names))}")
    return transformers.AutoModel
