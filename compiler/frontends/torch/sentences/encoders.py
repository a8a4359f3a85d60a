"""The first of a folder's modules, which takes ids of tokens."""

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
# Of an encoder with a decoder the package takes the encoder: those that are a class of transformers.
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
# Options that say how a model is placed and computed, which is decided here.
PLACED = {"torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
# Options that change texts before they are ids: they belong to what makes these.
OF_TEXTS = (
    "max_seq_length", "do_lower_case", "processing_kwargs", "processor_kwargs", "tokenizer_args",
    "tokenizer_name_or_path", "unpad_inputs", "query_length", "document_length", "query_expansion",
)  # fmt: skip


def transformer(part: Part, remarks: list[str]) -> nn.Module:
    """The model of transformers in the part's folder."""
    part.read_config(CONFIGS)
    return _encoder(part, part.take("transformer_task", str, "feature-extraction"), remarks)


def masked_lm(part: Part, remarks: list[str]) -> nn.Module:
    """The same for scores of the vocabulary, as older folders of sparse encoders have it."""
    part.read_config(CONFIGS)
    return _encoder(part, "fill-mask", remarks)


def _encoder(part: Part, task: str, remarks: list[str]) -> nn.Module:
    if task not in TASKS:
        raise part.unknown(f"its task {one_line(task, LONGEST)!r}")
    name, gives, output = TASKS[task]
    path: tuple[str | int, ...] = (gives,)
    if "modality_config" in part.config:
        path, output = _path_of_text(part), part.take("module_output_name", str, output)
    part.drop("module_output_name", *OF_TEXTS)
    settings, options = _settings(part), _options(part)
    part.done()
    cls = _class(part, name)
    model, found = load_class(part.folder, cls, trust=part.trust, settings=settings, **options)
    # The package leaves out what these say, too: other heads of the checkpoint.
    remarks += [note for note in found if "left out" not in note]
    return Encoder(model, path, output)


def _path_of_text(part: Part) -> tuple[str | int, ...]:
    """Where in the model's output the tokens' embeddings are."""
    text = part.take("modality_config", dict).get("text")
    if not isinstance(text, dict):
        raise Unsupported(f"{part.label}: it takes no plain text")
    if text.get("method") != "forward":
        raise part.unknown(f"its method {one_line(text.get('method'), LONGEST)!r}")
    found = text.get("method_output_name")
    path = tuple(found) if isinstance(found, list) else (found,)
    if not path or not all(isinstance(key, (str, int)) for key in path):
        raise InvalidModel(f"{part.label}: its config has no method_output_name that is a path")
    return path


def _settings(part: Part) -> dict[str, Any]:
    """Values that the folder sets in the config of its model."""
    given = part.take("config_args", dict, {}) | part.take("config_kwargs", dict, {})
    return {k: v for k, v in given.items() if k != "trust_remote_code"}


def _options(part: Part) -> dict[str, Any]:
    given = part.take("model_args", dict, {}) | part.take("model_kwargs", dict, {})
    asked = {k: v for k, v in given.items() if k not in {*PLACED, "trust_remote_code"}}
    for name in asked.keys() - {"add_pooling_layer"}:
        raise part.unknown(f"its option {one_line(name, LONGEST)!r}")
    return asked


def _class(part: Part, name: str) -> Any:
    """The class of transformers that an automatic class stands for here."""
    transformers = transformers_for(part.folder)
    config = read_config(part.folder)
    kind = config.get("model_type")
    if name == "AutoModel" and kind in ENCODERS:
        return getattr(transformers, ENCODERS[kind])
    configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    mapping = getattr(transformers, name)._model_mapping
    if kind not in configs or configs[kind] not in mapping:
        code = ", and code of the folder (auto_map) is not run" if config.get("auto_map") else ""
        raise Unsupported(
            f"{part.label}: transformers has no {name} for {one_line(kind, LONGEST)!r}{code}"
        )
    found = mapping[configs[kind]]
    return found[0] if isinstance(found, tuple) else found


def word_embeddings(part: Part, remarks: list[str]) -> nn.Module:
    """A table of words."""
    return Table(read_weights(part)["emb_layer.weight"])


def static_embedding(part: Part, remarks: list[str]) -> nn.Module:
    """A table of tokens; in model2vec's form with rows that several ids share, and a weight for each id."""
    held = read_weights(part)
    if "embedding.weight" in held or "embeddings" not in held:
        return StaticEmbedding(held["embedding.weight"])
    rows = held["embeddings"]
    rows = rows[held["mapping"].long()] if "mapping" in held else rows
    return StaticEmbedding(rows * held["weights"][:, None] if "weights" in held else rows)
