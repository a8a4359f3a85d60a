"""Hugging Face model directories: config.json and safetensors.

The architecture that config.json names decides the class, so also what head the model has.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tersor.errors import LONGEST, InvalidModel, Unsupported, one_line
from tersor.frontends.halves import float_types

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ATTENTIONS = ("eager", "sdpa")  # What can be traced; flash attention is code for GPUs.
# Inputs are sized so that no constant of a model is as large: tracing would take it for one.
BATCH, SEQUENCE, CHOICES, TARGET = 3, 17, 5, 11
# Heads whose text is always a pair, in which ``token_type_ids`` tell the second part from the first.
PAIRS = ("ForQuestionAnswering", "ForNextSentencePrediction", "ForPreTraining", "ForMultipleChoice")
# Heads of encoders with decoders that make the decoder's ids of the encoder's themselves.
SHIFTS = ("ForSequenceClassification", "ForQuestionAnswering")
# What a config of sentence-transformers' CrossEncoder carries, which scores pairs.
CROSS_ENCODER = ("sentence_transformers", "sbert_ce_default_activation_function")


@dataclass
class Loaded:
    """A model of a directory.

    Attributes:
        module: in evaluation mode.
        examples, shapes: inputs to trace it with, and their dynamic shapes.
        remarks: what is worth knowing of it, a line each.
    """

    module: Any
    examples: dict[str, Any]
    shapes: dict[str, dict[int, str]]
    remarks: list[str] = field(default_factory=list)


def load_pretrained(directory: str | Path, *, trust: bool = False) -> Loaded:
    """The model of a directory, of the first of ``architectures`` that transformers has.

    Nothing is downloaded, no code of the directory is run, and weights are read from safetensors only
    (pickles can run code). What is held in other floats is computed in float32.

    Args:
        trust: read pickled weights too.

    Raises:
        InvalidModel: no config or weights in it, a broken config, weights that do not fill the model.
        Unsupported: pickled weights; an architecture that transformers does not have; a model that takes
            no ids of tokens; transformers is not installed.
    """
    directory = Path(directory)
    config = read_config(directory)
    model, remarks = load_class(directory, _class_of(config, directory), trust=trust)
    examples, shapes = text_inputs(model)
    if "token_type_ids" not in examples and _tells_pairs(model):
        remarks.append(
            "takes one text: token_type_ids are 0; for pairs of texts give example_inputs with them"
        )
    return Loaded(model, examples, shapes, remarks)


def load_class(
    directory: Path,
    cls: Any,
    *,
    trust: bool = False,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """The model of a directory as ``cls`` of transformers, in evaluation mode, and remarks.

    Args:
        settings: values of the config that differ from those in the directory.
        options: for ``from_pretrained``.

    Raises:
        As :func:`load_pretrained`.
    """
    import transformers

    pickled = _check_weights(directory, trust)
    _check_plain(read_config(directory), directory)
    with _quiet(transformers), _one_line_errors(directory):
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        _set_up(config)
        for name, value in (settings or {}).items():
            setattr(config, name, value)
        if config._attn_implementation not in (None, *ATTENTIONS):
            config._attn_implementation = "sdpa" if cls._supports_sdpa else "eager"
        model, found = cls.from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            use_safetensors=None if pickled else True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **options,
        )
    remarks = _fill(model, found, directory)
    if others := float_types(directory) - {"F32"}:
        remarks.append(f"weights are held in {' and '.join(sorted(others))}: computed in float32")
    return model.eval(), remarks


def text_inputs(model: Any, *, pairs: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs and dynamic shapes for a model of token ids, all i64[batch, sequence]: ``input_ids``
    and, where its forward takes one, ``attention_mask``; ``token_type_ids`` where its texts are pairs;
    ``decoder_input_ids`` i64[batch, target] for an encoder with a decoder.

    Args:
        pairs: whether its texts are pairs, beside what its class tells.

    Raises:
        Unsupported: its forward takes no ``input_ids``.
    """
    taken = inspect.signature(model.forward).parameters
    name = type(model).__name__
    if "input_ids" not in taken:
        raise Unsupported(f"{name} takes no input_ids: give example_inputs")
    dims = {0: (BATCH, "batch"), 1: (SEQUENCE, "sequence")}
    if name.endswith("ForMultipleChoice"):
        dims = {0: (BATCH, "batch"), 1: (CHOICES, "choices"), 2: (SEQUENCE, "sequence")}
    names = ["input_ids", "attention_mask"]
    if (pairs or _takes_pairs(model)) and _knows_types(model):
        names.append("token_type_ids")
    inputs = {n: dims for n in names if n in taken}
    if (
        "decoder_input_ids" in taken
        and model.config.is_encoder_decoder
        and not name.endswith(SHIFTS)
    ):
        inputs["decoder_input_ids"] = {0: (BATCH, "batch"), 1: (TARGET, "target")}
    examples = {
        n: torch.ones([size for size, _ in d.values()], dtype=torch.long) for n, d in inputs.items()
    }
    return examples, {n: {axis: dim for axis, (_, dim) in d.items()} for n, d in inputs.items()}


def read_config(directory: Path) -> dict[str, Any]:
    """What ``config.json`` of a model directory holds.

    Raises:
        InvalidModel: there is none, or it is no JSON object.
    """
    path = directory / "config.json"
    if (directory / "adapter_config.json").is_file():
        raise InvalidModel(
            f"{directory}: holds an adapter (adapter_config.json): merge it into its model "
            "(merge_and_unload), and save the whole"
        )
    if not path.is_file():
        raise InvalidModel(f"{directory}: no config.json in it, so not a model directory")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InvalidModel: it is none.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InvalidModel(f"{path}: not JSON ({one_line(error, LONGEST)})") from None
    if not isinstance(held, dict):
        raise InvalidModel(f"{path}: not a JSON object")
    return held


def _class_of(config: dict[str, Any], directory: Path) -> Any:
    transformers = transformers_for(directory)
    names = config.get("architectures") or []
    for name in names:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    told = one_line(", ".join(map(str, names)), LONGEST)
    if config.get("auto_map"):
        raise Unsupported(
            f"{directory}: {told or 'the model'} is code that comes with the folder (auto_map in "
            "config.json), which is not run: load it yourself, and give the module"
        )
    if names:
        raise Unsupported(f"{directory}: transformers has no {told}")
    return transformers.AutoModel


def transformers_for(directory: Path) -> Any:
    """The package transformers.

    Raises:
        Unsupported: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise Unsupported(f"{directory}: model directories need the package transformers") from None
    return transformers


def _check_weights(directory: Path, trust: bool) -> bool:
    """Whether the weights are pickles, which are trusted then."""
    if any(directory.glob("*.safetensors")):
        return False
    pickles = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
    if pickles and trust:
        return True
    if pickles:
        raise Unsupported(
            f"{directory}: {pickles[0]} is a pickle, which can run code: save it as safetensors "
            "(save_pretrained does), or trust it (--trust)"
        )
    models = sorted(str(p.relative_to(directory)) for p in directory.rglob("*.onnx"))
    instead = f", but {models[0]}: give that file" if models else ""
    raise InvalidModel(f"{directory}: no *.safetensors in it{instead}")


def _check_plain(config: dict[str, Any], directory: Path) -> None:
    """Raises:
    Unsupported: weights that a package holds in a form of its own.
    """
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise Unsupported(
            f"{directory}: its weights are quantized{f' by {one_line(method, 60)}' if method else ''}, in a "
            "form that is not known here: give the model before that, or dequantized"
        )


def _set_up(config: Any) -> None:
    """Keeps caches out of the outputs: a graph that runs once has no use for them."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            _set_up(getattr(config, name))


def _fill(model: Any, found: dict[str, Any], directory: Path) -> list[str]:
    """Checks that no weight is made up. A pooler without weights goes: encoders are often saved so.

    Raises:
        InvalidModel: weights are missing, by name.
    """
    remarks = []
    if found["mismatched_keys"]:
        name, held, wanted = min(found["mismatched_keys"])
        raise InvalidModel(
            f"{directory}: {one_line(name, LONGEST)} is {list(held)}, and by config.json {list(wanted)}"
        )
    missing = sorted(found["missing_keys"])
    poolers = [name for name in missing if name.startswith("pooler.")]
    if poolers and hasattr(model, "pooler"):
        model.pooler = None
        missing = [name for name in missing if name not in poolers]
        remarks.append("its pooler has no weights, and is left out")
    if missing:
        raise InvalidModel(
            f"{directory}: {type(model).__name__} has {len(missing)} weights that are not in the "
            f"directory, {one_line(missing[0], LONGEST)} for one: random numbers would stand in for them"
        )
    left = sorted(found["unexpected_keys"])
    if left:
        remarks.append(
            f"{len(left)} weights are not {type(model).__name__}'s, and are left out: "
            f"{one_line(', '.join(left[:3]), LONGEST)}{' …' if len(left) > 3 else ''}"
        )
    return remarks


def _takes_pairs(model: Any) -> bool:
    told = any(hasattr(model.config, key) for key in CROSS_ENCODER)
    return told or type(model).__name__.endswith(PAIRS)


def _tells_pairs(model: Any) -> bool:
    """Whether a class for one text could as well be given two."""
    return type(model).__name__.endswith("ForSequenceClassification") and _knows_types(model)


def _knows_types(model: Any) -> bool:
    taken = inspect.signature(model.forward).parameters
    return "token_type_ids" in taken and getattr(model.config, "type_vocab_size", 0) > 1


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    """Within it, whatever transformers raises about a directory is an InvalidModel of one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, KeyError, ImportError, SafetensorError, …
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = one_line(lines[0] if lines else type(error).__name__, LONGEST)
        raise InvalidModel(f"{directory}: transformers cannot load it: {told}") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Within it, transformers says nothing: what it would warn of is checked here."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
