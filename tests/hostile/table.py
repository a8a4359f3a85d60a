"""Hostile inputs: how to build each, and the exact message of its refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto, parser

from tersor.errors import InvalidModel, TersorError

Source = Path | bytes | ModelProto
Build = Callable[[Path], Source]


@dataclass(frozen=True)
class Refused:
    """A model, which ``build`` creates in an empty folder, and the message that refuses it. ``{path}`` and
    ``{folder}`` in ``message`` are replaced by the model's path and that folder."""

    name: str
    build: Build
    message: str
    error: type[TersorError] = InvalidModel
    allow_hf_cache: bool = False


RELU = "(float[2] x) => (float[2] y) { y = Relu (x) }"


def text(body: str = RELU, opsets: str = '"": 17', ir: int = 8) -> ModelProto:
    """A model in ONNX's text form."""
    return parser.parse_model(f"<ir_version: {ir}, opset_import: [{opsets}]> g {body}")


def with_initializer(tensor: TensorProto) -> ModelProto:
    """A model that adds ``tensor`` to its input."""
    model = text("(float[2] x) => (float[2] y) { y = Add (x, w) }")
    tensor.name = "w"
    model.graph.initializer.append(tensor)
    return model


def file(data: bytes, name: str = "model.onnx") -> Build:
    """A file with these bytes."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def in_memory(model: ModelProto) -> Build:
    """The model in memory."""
    return lambda folder: model


def saved(folder: Path, model: ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def peak_megabytes() -> int:
    """The peak memory of this process. (That of getrusage starts at the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
