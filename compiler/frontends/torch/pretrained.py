"""Hugging Face model directories: config.json and safetensors.

The architecture in config.json determines the class, and so the model's head.
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
from tersor.frontends.half_precision import float_types

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ATTENTIONS = ("eager", "sdpa")  # Those that can be traced; flash attention needs a GPU.
# Unusual sizes, so that tracing does not identify them with constants of a model.
BATCH, SEQUENCE, CHOICES, TARGET = 3, 17, 5, 11
# Heads whose input is always a pair of texts, distinguished by ``token_type_ids``.
PAIRS = ("ForQuestionAnswering", "ForNextSentencePrediction", "ForPreTraining", "ForMultipleChoice")
# Heads of encoder-decoders that compute the decoder's ids from the encoder's.
SHIFTS = ("ForSequenceClassification", "ForQuestionAnswering")
# Keys in the config of a CrossEncoder of sentence-transformers, which scores pairs.
CROSS_ENCODER = ("sentence_transformers", "sbert_ce_default_activation_function")


@dataclass
class Loaded:
    """A loaded model directory.

    Attributes:
        module: the model, in evaluation mode.
        examples, shapes: example inputs for tracing, and their dynamic shapes.
        remarks: what a user should know about it, one line each.
    """

    module: Any
    examples: dict[str, Any]
    shapes: dict[str, dict[int, str]]
    remarks: list[str] = field(default_factory=list)


def load_pretrained(directory: str | Path, *, trust: bool = False) -> Loaded:
    """Loads a model directory, as the first of ``architectures`` that transformers has.

    Nothing is downloaded, no code in the directory is run, and weights are read from safetensors only,
    because pickles can run code. Weights of other floating-point types are converted to float32.

    Args:
        directory: the model directory.
        trust: also read pickled weights.

    Raises:
        InvalidModel: a missing or damaged config, or missing weights.
        Unsupported: pickled weights; an architecture that transformers does not have; a model without token
            ids as input; transformers is not installed.
    """
    directory = Path(directory)
    config = read_config(directory)
    model, remarks = load_class(directory, _class_of(config, directory), trust=trust)
    examples, shapes = text_inputs(model)
    if "token_type_ids" not in examples and _may_take_pairs(model):
        remarks.append(
            "takes one text, with token_type_ids 0: for pairs of texts, give example_inputs that contain them"
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
    """The model in a directory as ``cls`` of transformers, in evaluation mode, and remarks.

    Args:
        directory: the model directory.
        cls: the class.
        trust: also read pickled weights.
        settings: values that replace those in the directory's config.
        options: for ``from_pretrained``.

    Raises:
        InvalidModel, Unsupported: as for :func:`load_pretrained`.
    """
    import transformers

    pickled = _check_weights(directory, trust)
    _check_not_quantized(read_config(directory), directory)
    with _quiet(transformers), _one_line_errors(directory):
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        _disable_cache(config)
        for name, value in (settings or {}).items():
            setattr(config, name, value)
        if config._attn_implementation not in (None, *ATTENTIONS):
            config._attn_implementation = "sdpa" if cls._supports_sdpa else "eager"
        model, info = cls.from_pretrained(
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
    remarks = _check_complete(model, info, directory)
    if others := float_types(directory) - {"F32"}:
        remarks.append(f"weights are stored in {' and '.join(sorted(others))}: computed in float32")
    return model.eval(), remarks


def text_inputs(model: Any, *, pairs: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs and dynamic shapes for a model that takes token ids, all i64[batch, sequence]:
    ``input_ids``; ``attention_mask``, if its forward takes one; ``token_type_ids``, for pairs of texts;
    and for an encoder-decoder ``decoder_input_ids`` i64[batch, target].

    Args:
        model: the model.
        pairs: whether its inputs are pairs of texts, in addition to classes for which they always are.

    Raises:
        Unsupported: its forward takes no ``input_ids``.
    """
    parameters = inspect.signature(model.forward).parameters
    name = type(model).__name__
    if "input_ids" not in parameters:
        raise Unsupported(f"{name} takes no input_ids: give example_inputs")
    dims = {0: (BATCH, "batch"), 1: (SEQUENCE, "sequence")}
    if name.endswith("ForMultipleChoice"):
        dims = {0: (BATCH, "batch"), 1: (CHOICES, "choices"), 2: (SEQUENCE, "sequence")}
    names = ["input_ids", "attention_mask"]
    if (pairs or _takes_pairs(model)) and _has_token_types(model):
        names.append("token_type_ids")
    inputs = {n: dims for n in names if n in parameters}
    if (
        "decoder_input_ids" in parameters
        and model.config.is_encoder_decoder
        and not name.endswith(SHIFTS)
    ):
        inputs["decoder_input_ids"] = {0: (BATCH, "batch"), 1: (TARGET, "target")}
    examples = {
        n: torch.ones([size for size, _ in d.values()], dtype=torch.long) for n, d in inputs.items()
    }
    return examples, {n: {axis: dim for axis, (_, dim) in d.items()} for n, d in inputs.items()}


def read_config(directory: Path) -> dict[str, Any]:
    """The ``config.json`` of a model directory.

    Raises:
        InvalidModel: it is missing, or not a JSON object; or the directory contains an adapter.
    """
    path = directory / "config.json"
    if (directory / "adapter_config.json").is_file():
        raise InvalidModel(
            f"{directory}: an adapter (adapter_config.json), not a model: merge it into its base model "
            "(merge_and_unload), and save that"
        )
    if not path.is_file():
        raise InvalidModel(f"{directory}: no config.json, so not a model directory")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InvalidModel: the file has something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InvalidModel(f"{path}: not JSON ({one_line(error, LONGEST)})") from None
    if not isinstance(value, dict):
        raise InvalidModel(f"{path}: not a JSON object")
    return value


def _class_of(config: dict[str, Any], directory: Path) -> Any:
    transformers = transformers_for(directory)
    names = config.get("architectures") or []
    for name in names:
        cls = getattr(transformers, str(name), None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
    shown = one_line(", ".join(map(str, names)), LONGEST)
    if config.get("auto_map"):
        raise Unsupported(
            f"{directory}: {shown or 'the model'} is defined by code in the folder (auto_map in "
            "config.json), which is not run: load it in Python, and give the module"
        )
    if names:
        raise Unsupported(f"{directory}: transformers has no {shown}")
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
    """Whether the weights are pickles, which must be trusted."""
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
    raise InvalidModel(f"{directory}: no *.safetensors{instead}")


def _check_not_quantized(config: dict[str, Any], directory: Path) -> None:
    """Raises:
    Unsupported: the weights are quantized by another package.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise Unsupported(
            f"{directory}: its weights are quantized{f' by {one_line(method, 60)}' if method else ''}, in an "
            "unsupported format: give the original or a dequantized model"
        )


def _disable_cache(config: Any) -> None:
    """Keeps key-value caches out of the outputs."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            _disable_cache(getattr(config, name))


def _check_complete(model: Any, info: dict[str, Any], directory: Path) -> list[str]:
    """Checks ``info``, transformers' record of loading, so that no weight is initialized at random; returns
    remarks. A pooler without weights is removed, because encoders are often saved so.

    Raises:
        InvalidModel: weights are missing or of another shape.
    """
    remarks = []
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"])
        raise InvalidModel(
            f"{directory}: {one_line(name, LONGEST)} has shape {list(stored)}, but {list(expected)} by "
            "config.json"
        )
    missing = sorted(info["missing_keys"])
    poolers = [name for name in missing if name.startswith("pooler.")]
    if poolers and hasattr(model, "pooler"):
        model.pooler = None
        missing = [name for name in missing if name not in poolers]
        remarks.append("its pooler has no weights and is left out")
    if missing:
        raise InvalidModel(
            f"{directory}: {len(missing)} weights of {type(model).__name__} are missing, for example "
            f"{one_line(missing[0], LONGEST)}: add them, or correct architectures in config.json"
        )
    unused = sorted(info["unexpected_keys"])
    if unused:
        remarks.append(
            f"{len(unused)} weights are not used by {type(model).__name__} and are left out: "
            f"{one_line(', '.join(unused[:3]), LONGEST)}{' …' if len(unused) > 3 else ''}"
        )
    return remarks


def _takes_pairs(model: Any) -> bool:
    """Whether the model's input is always a pair of texts."""
    is_cross_encoder = any(hasattr(model.config, key) for key in CROSS_ENCODER)
    return is_cross_encoder or type(model).__name__.endswith(PAIRS)


def _may_take_pairs(model: Any) -> bool:
    """Whether the model's input is one text or a pair."""
    return type(model).__name__.endswith("ForSequenceClassification") and _has_token_types(model)


def _has_token_types(model: Any) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "token_type_ids" in parameters and getattr(model.config, "type_vocab_size", 0) > 1


@contextmanager
def _one_line_errors(directory: Path) -> Iterator[None]:
    """Converts any error of transformers to an InvalidModel with one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, KeyError, ImportError, SafetensorError, …
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = one_line(lines[0] if lines else type(error).__name__, LONGEST)
        raise InvalidModel(f"{directory}: transformers cannot load it: {reason}") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Temporarily silences transformers: what it would warn about is checked here."""
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
