"""Small seeded transformers of every kind of attention, and ONNX files of them by every exporter.

python tests/attention_models.py [part of a name ...]   a table: layers, how many are one Attention, errors
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

import tersor
from tersor.frontends.onnx.importer import import_model
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.pipeline import Pipeline

Feed = dict[str, np.ndarray]
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
SMALL = {**WIDE, "intermediate_size": 64, "max_position_embeddings": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BOTH = {"d_model": 32, "vocab_size": 50, "pad_token_id": 0, "use_cache": False}
COUPLED = {**BOTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "bos_token_id": 1,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "eos_token_id": 2,
           "max_position_embeddings": 64, "decoder_start_token_id": 1, "forced_eos_token_id": None}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "use_cache": False,
       "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
T5 = {**BOTH, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}
PICTURE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
           "image_size": 16, "patch_size": 4}  # fmt: skip


class Run(torch.nn.Module):
    """A transformers model as a function of its inputs by name."""

    def __init__(self, model: torch.nn.Module, more: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.more = model, more


class Text(Run):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.more)[0]  # type: ignore[no-any-return]


class Pair(Run):
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
    ) -> torch.Tensor:
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            **self.more,
        )
        return made[0]  # type: ignore[no-any-return]


class Picture(Run):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values, **self.more)[0]  # type: ignore[no-any-return]


class Sound(Run):
    def forward(
        self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> torch.Tensor:
        made = self.model(
            input_features=input_features, decoder_input_ids=decoder_input_ids, **self.more
        )
        return made[0]  # type: ignore[no-any-return]


class TorchEncoder(torch.nn.Module):
    """torch's own, whose heads are merged with the batch behind the length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 32)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.embed(input_ids).transpose(0, 1)
        return (self.encoder(x, src_key_padding_mask=attention_mask == 0),)


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        model, config, options: of transformers; without a config torch's own encoder.
        layers: how many attentions it has.
        form: what it takes.
        call: more that it is called with.
    """

    model: str
    config: str
    options: dict[str, Any]
    layers: int = 2
    form: type[Run] = Text
    call: dict[str, Any] = field(default_factory=dict)

    def build(self, attention: str) -> torch.nn.Module:
        """The module with ``eager`` or ``sdpa`` attention, as far as it has both."""
        torch.manual_seed(0)
        if not self.config:
            torch.backends.mha.set_fastpath_enabled(False)  # Which no exporter can write.
            made: Any = TorchEncoder()
        else:
            config = getattr(transformers, self.config)(**self.options)
            config._attn_implementation = attention
            model = getattr(transformers, self.model)
            made = model._from_config(config, attn_implementation=attention)
        with torch.no_grad():  # Scales of 1 and biases of 0 would fold away.
            for parameter in made.parameters():
                scale = 0.1 if parameter.dim() == 1 else 0.05
                parameter.add_(scale * torch.randn_like(parameter))
        return self.form(made.eval(), self.call).eval()

    def feed(self, rows: int, length: int) -> Feed:
        """Random inputs of which the last row is padded by half, the first a little."""
        rng = np.random.default_rng(rows * 100 + length)
        ids = rng.integers(3, 50, (rows, length))
        mask = np.ones_like(ids)
        mask[0, length - 2 :] = 0
        mask[-1, length // 2 :] = 0
        steps = rng.integers(3, 50, (rows, length // 2 + 1))
        if self.form is Picture:
            return {"pixel_values": rng.standard_normal((rows, 3, 16, 16), np.float32)}
        if self.form is Sound:
            sound = rng.standard_normal((rows, 8, 32), np.float32)
            return {"input_features": sound, "decoder_input_ids": steps}
        more = {"decoder_input_ids": steps} if self.form is Pair else {}
        return {"input_ids": ids, "attention_mask": mask, **more}

    def open_dims(self, feed: Feed) -> dict[str, dict[int, str]]:
        lengths = {"decoder_input_ids": "steps", "input_ids": "length", "attention_mask": "length"}
        return {n: {0: "batch", **({1: lengths[n]} if n in lengths else {})} for n in feed}


def of(name: str, options: dict[str, Any], model: str = "", **more: Any) -> Kind:
    return Kind(model or f"{name}Model", f"{name}Config", options, **more)


KINDS: dict[str, Kind] = {
    "bert": of("Bert", SMALL),
    "torch": Kind("", "", {}),
    "roberta": of("Roberta", {**SMALL, "pad_token_id": 0}),
    "electra": of("Electra", {**SMALL, "embedding_size": 16}),
    "mpnet": of("MPNet", {**SMALL, "pad_token_id": 0}),
    "modernbert": of("ModernBert", {**SMALL, "num_hidden_layers": 2, "global_attn_every_n_layers": 2,
                     "local_attention": 8, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}),
    "deberta": of("Deberta", {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": of("DebertaV2", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                     "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
                     "position_biased_input": False}),
    "xlnet": of("XLNet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 50},
                call={"use_mems": False}),
    "longformer": of("Longformer", {**SMALL, "attention_window": 4, "pad_token_id": 0}),
    "squeezebert": of("SqueezeBert", {**SMALL, "embedding_size": 32}),
    "gpt2": of("GPT2", GPT),
    "gpt-neo": of("GPTNeo", {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                  "window_size": 4, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt-neox": of("GPTNeoX", {**SMALL, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt-j": of("GPTJ", {**GPT, "rotary_dim": 4}),
    "opt": of("OPT", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False, "pad_token_id": 0}),
    "bloom": of("Bloom", {**WIDE, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "mpt": of("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 50, "max_seq_len": 64,
              "use_cache": False}),
    "falcon": of("Falcon", {**WIDE, "multi_query": True, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}),
    "falcon alibi": of("Falcon", {**WIDE, "multi_query": False, "alibi": True, "use_cache": False,
                       "parallel_attn": False, "bos_token_id": 0, "eos_token_id": 0}),
    "falcon new": of("Falcon", {**WIDE, "new_decoder_architecture": True, "num_kv_heads": 2, "use_cache": False,
                     "bos_token_id": 0, "eos_token_id": 0}),
    "llama": of("Llama", GROUPED),
    "mistral": of("Mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2": of("Qwen2", GROUPED),
    "qwen3": of("Qwen3", GROUPED),
    "phi": of("Phi", {**GROUPED, "num_key_value_heads": 4}),
    "gemma2": of("Gemma2", {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3": of("Gemma3Text", {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 8}, "Gemma3TextModel"),
    "t5 encoder": of("T5", T5, "T5EncoderModel"),
    "mt5 encoder": of("MT5", {**T5, "feed_forward_proj": "gated-gelu"}, "MT5EncoderModel"),
    "t5": of("T5", {**T5, "num_layers": 1, "num_decoder_layers": 1}, form=Pair, layers=3),
    "bart": of("Bart", COUPLED, form=Pair, layers=3),
    "marian": of("Marian", COUPLED, form=Pair, layers=3),
    "m2m100": of("M2M100", COUPLED, form=Pair, layers=3),
    "whisper": of("Whisper", {**COUPLED, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32,
                  "suppress_tokens": None, "begin_suppress_tokens": None}, form=Sound, layers=3),
    "vit": of("ViT", PICTURE, form=Picture),
    "dinov2": of("Dinov2", {**PICTURE, "mlp_ratio": 2}, form=Picture),
    "swin": of("Swin", {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [4],
               "window_size": 4}, form=Picture),
    "beit": of("Beit", {**PICTURE, "vocab_size": 50, "use_relative_position_bias": True}, form=Picture),
    "clip text": of("CLIPText", SMALL | {"bos_token_id": 0, "eos_token_id": 49}, "CLIPTextModel"),
    "siglip text": of("SiglipText", SMALL, "SiglipTextModel"),
}  # fmt: skip
# Name -> (implementation of attention, opset of the TorchScript exporter, 0 for the other one).
EXPORTERS = {
    "sdpa, dynamo": ("sdpa", 0),
    "eager, dynamo": ("eager", 0),
    "eager, opset 11": ("eager", 11),
    "eager, opset 17": ("eager", 17),
    "sdpa, opset 14": ("sdpa", 14),
    "sdpa, opset 17": ("sdpa", 17),
    "sdpa, opset 20": ("sdpa", 20),
}


def export(kind: Kind, exporter: str, path: Path) -> Path:
    """Writes the file, with batch and lengths open."""
    attention, opset = EXPORTERS[exporter]
    module = kind.build(attention)
    inputs = {name: torch.from_numpy(value) for name, value in kind.feed(3, 13).items()}
    dims = kind.open_dims(kind.feed(3, 13))
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if opset:
            torch.onnx.export(
                module, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=["y"],
                dynamic_axes=dims, dynamo=False, opset_version=opset,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, kwargs=inputs, f=str(path), input_names=list(inputs), output_names=["y"],
                dynamic_shapes=dims, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    return path


def fused(path: Path) -> int:
    """How many attentions are one op."""
    graph = Pipeline(optimization(), evaluate=evaluate).run(import_model(path))
    return sum(node.op == "Attention" for node in graph.walk())


def reference(path: Path) -> Callable[[Feed], np.ndarray]:
    """ONNX Runtime on the file as it is."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    return lambda feed: session.run(None, {k: v for k, v in feed.items() if k in taken})[0]


SIZES = ((2, 7), (5, 16), (1, 13))


def error(kind: Kind, path: Path, runtime: str) -> float:
    """The largest error of what the recipe fp32 makes of the file, relative to the largest number, at sizes
    that the example does not have and that the file itself runs at."""
    want, found, ran = reference(path), 0.0, 0
    artifact = tersor.compile(path, recipe="fp32", runtime=runtime, measure=False)
    taken = {value.name for value in import_model(path).inputs}
    for rows, length in SIZES:
        feed = kind.feed(rows, length)
        try:
            expected = want(feed)
        except Exception:  # The exporter baked a size in.
            continue
        ran += 1
        (got,) = artifact.run({k: v for k, v in feed.items() if k in taken}).values()
        assert got.shape == expected.shape, (got.shape, expected.shape)
        largest = float(np.abs(expected).max())
        found = max(found, float(np.abs(got - expected).max()) / largest)
    return found if ran else float("nan")


# Layers that stay products and a softmax: of other layouts (XLNet), windows of blocks (Longformer, Swin by
# TorchScript), a bias of as many keys as the table has (MPT), added before the scale (Falcon).
GENERIC = {
    "xlnet": EXPORTERS.keys(),
    "longformer": EXPORTERS.keys(),
    "swin": EXPORTERS.keys() - {"sdpa, dynamo", "eager, dynamo"},
    "mpt": EXPORTERS.keys() - {"eager, dynamo"},
    "falcon alibi": EXPORTERS.keys(),
}


def row(name: str, exporter: str, folder: Path, runtimes: tuple[str, ...]) -> list[str] | None:
    """Name, exporter, layers, how many are one op, and errors; None where it cannot be exported, or ONNX
    Runtime refuses the file."""
    kind = KINDS[name]
    try:
        path = export(kind, exporter, folder / "model.onnx")
        reference(path)
    except Exception:  # Of many kinds; whatever it is, there is no model.
        return None
    errors = [f"{error(kind, path, runtime):.1e}" for runtime in runtimes]
    return [name, exporter, str(kind.layers), str(fused(path)), *errors]


def main(parts: list[str]) -> None:
    """Prints the rows whose names have one of the parts; all without any."""
    for name in KINDS:
        for exporter in EXPORTERS:
            if parts and not any(part in f"{name}, {exporter}" for part in parts):
                continue
            with tempfile.TemporaryDirectory() as folder:
                made = row(name, exporter, Path(folder), ("ort", "tvm"))
            if made is not None:
                print("| " + " | ".join(made) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
