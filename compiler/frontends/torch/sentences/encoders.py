"""The first module of a folder, which takes token ids."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.errors import LONGEST, InvalidModel, Unsupported, one_line
from tersor.frontends.torch.pretrained import load_class, read_config, transformers_for
from tersor.frontends.torch.sentences.modules import (
    SCORES,
    TOKENS,
    Encoder,
    StaticEmbedding,
    Table,
)
from tersor.frontends.torch.sentences.part import Part, read_weights

CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TASKS = {
    "feature-extraction": ("AutoModel", "last_hidden_state", TOKENS),
    "sequence-classification": ("AutoModelForSequenceClassification", "logits", SCORES),
    "fill-mask": ("AutoModelForMaskedLM", "logits", TOKENS),
}
# For an encoder-decoder, the package uses the encoder: these have a class in transformers.
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
# Options of dtype, device and implementation, which are chosen here.
PLACEMENT = {"torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
# Options of the tokenizer.
TOKENIZER = (
    "max_seq_length", "do_lower_case", "processing_kwargs", "processor_kwargs", "tokenizer_args",
    "tokenizer_name_or_path", "unpad_inputs", "query_length", "document_length", "query_expansion",
)  # fmt: skip


def transformer(part: Part, remarks: list[str]) -> nn.Module:
    """The transformers model in the part's folder."""
    part.read_config(CONFIGS)
    return _encoder(part, part.take("transformer_task", str, "feature-extraction"), remarks)


def masked_lm(part: Part, remarks: list[str]) -> nn.Module:
    """A model with scores over the vocabulary, in older folders of sparse encoders."""
    part.read_config(CONFIGS)
    return _encoder(part, "fill-mask", remarks)


def _encoder(part: Part, task: str, remarks: list[str]) -> nn.Module:
    if task not in TASKS:
        raise part.unknown(f"task {one_line(task, LONGEST)!r}")
    name, field, output = TASKS[task]
    path: tuple[str | int, ...] = (field,)
    if "modality_config" in part.config:
        path, output = _path_of_text(part), part.take("module_output_name", str, output)
    part.drop("module_output_name", *TOKENIZER)
    settings, options = _settings(part), _options(part)
    part.done()
    cls = _class(part, name)
    model, loading = load_class(part.folder, cls, trust=part.trust, settings=settings, **options)
    # Other heads of a checkpoint are left out by the package, too.
    remarks += [remark for remark in loading if "left out" not in remark]
    return Encoder(model, path, output)


def _path_of_text(part: Part) -> tuple[str | int, ...]:
    """The path to the token embeddings in the model's output."""
    text = part.take("modality_config", dict).get("text")
    if not isinstance(text, dict):
        raise Unsupported(f"{part.label}: does not take text")
    if text.get("method") != "forward":
        raise part.unknown(f"method {one_line(text.get('method'), LONGEST)!r}")
    name = text.get("method_output_name")
    path = tuple(name) if isinstance(name, list) else (name,)
    if not path or not all(isinstance(key, (str, int)) for key in path):
        raise InvalidModel(f"{part.label}: method_output_name in its config is not a path")
    return path


def _settings(part: Part) -> dict[str, Any]:
    """Values that the folder overrides in its model's config."""
    given = part.take("config_args", dict, {}) | part.take("config_kwargs", dict, {})
    return {k: v for k, v in given.items() if k != "trust_remote_code"}


def _options(part: Part) -> dict[str, Any]:
    given = part.take("model_args", dict, {}) | part.take("model_kwargs", dict, {})
    options = {k: v for k, v in given.items() if k not in {*PLACEMENT, "trust_remote_code"}}
    for name in options.keys() - {"add_pooling_layer"}:
        raise part.unknown(f"option {one_line(name, LONGEST)!r}")
    return options


def _class(part: Part, name: str) -> Any:
    """The class that ``name``, an auto class of transformers, selects for the part's config."""
    transformers = transformers_for(part.folder)
    config = read_config(part.folder)
    kind = config.get("model_type")
    if name == "AutoModel" and kind in ENCODERS:
        return getattr(transformers, ENCODERS[kind])
    configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    mapping = getattr(transformers, name)._model_mapping
    if kind not in configs or configs[kind] not in mapping:
        code = ", and code in the folder (auto_map) is not run" if config.get("auto_map") else ""
        raise Unsupported(
            f"{part.label}: transformers has no {name} for {one_line(kind, LONGEST)!r}{code}"
        )
    cls = mapping[configs[kind]]
    return cls[0] if isinstance(cls, tuple) else cls


def word_embeddings(part: Part, remarks: list[str]) -> nn.Module:
    """An embedding table of words."""
    return Table(read_weights(part)["emb_layer.weight"])


def static_embedding(part: Part, remarks: list[str]) -> nn.Module:
    """An embedding table of tokens; in model2vec's format, ids may share rows, and each has a weight."""
    weights = read_weights(part)
    if "embedding.weight" in weights or "embeddings" not in weights:
        return StaticEmbedding(weights["embedding.weight"])
    rows = weights["embeddings"]
    rows = rows[weights["mapping"].long()] if "mapping" in weights else rows
    return StaticEmbedding(rows * weights["weights"][:, None] if "weights" in weights else rows)
