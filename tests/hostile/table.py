"""One row a hostile input: how it is made, and the exact message that refuses it."""

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
    """What ``build`` makes in an empty folder is refused with ``message``, in which ``{path}`` and
    ``{folder}`` stand for the model's path and for that folder."""

    name: str
    build: Build
    message: str
    error: type[TersorError] = InvalidModel
    allow_hf_cache: bool = False


RELU = "(float[2] x) => (float[2] y) { y = Relu (x) }"


def text(body: str = RELU, opsets: str = '"": 17', ir: int = 8) -> ModelProto:
    """A model in ONNX's text form."""
    return parser.parse_model(f"<ir_version: {ir}, opset_import: [{opsets}]> g {body}")


def holding(tensor: TensorProto) -> ModelProto:
    """A model that adds ``tensor`` to its input."""
    model = text("(float[2] x) => (float[2] y) { y = Add (x, w) }")
    tensor.name = "w"
    model.graph.initializer.append(tensor)
    return model


def file(data: bytes, name: str = "model.onnx") -> Build:
    """A file of these bytes."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def given(model: ModelProto) -> Build:
    """The model in memory."""
    return lambda folder: model


def saved(folder: Path, model: ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def peak_megabytes() -> int:
    """The most memory that this process held. (What getrusage tells begins with its parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
