"""ONNX's backend suite as plain data: models with inputs, expected outputs and tolerances."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_model_tests

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")

Data = Sequence[Any]  # One item an input or output: array, list for a sequence, None for nothing.


@dataclass(frozen=True)
class Case:
    """One test of the suite.

    Attributes:
        kind: one of ``KINDS``.
        name: unique in its kind.
        source: the model, or the file that it is in.
        data: pairs of inputs and expected outputs, in the model's order.
        rtol, atol: how near an output must be to what is expected.
    """

    kind: str
    name: str
    source: ModelProto | Path
    data: tuple[tuple[Data, Data], ...] | None
    rtol: float
    atol: float

    def model(self) -> ModelProto:
        """The model; read anew where it is on disk."""
        return self.source if isinstance(self.source, ModelProto) else onnx.load(self.source)

    def data_sets(self, model: ModelProto) -> Sequence[tuple[Data, Data]]:
        """Inputs and what they must give."""
        if self.data is not None:
            return self.data
        assert isinstance(self.source, Path)
        if self.kind == "light":
            return [_light_data(self.source, model)]
        return [_folder_data(f, model) for f in sorted(self.source.parent.glob("test_data_set*"))]


@cache
def load(kind: str) -> dict[str, Case]:
    """The cases of a kind by name, sorted. The node cases are computed (10 s), so keep them."""
    if kind == "light":
        found = [_light_case(path) for path in Path(DATA_DIR, "light").glob("*.onnx")]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Cases on overflow overflow while they are made.
            found = [_case(kind, test) for test in load_model_tests(kind=kind)]
    cases = {case.name: case for case in sorted(found, key=lambda c: c.name)}
    assert len(cases) == len(found), f"two {kind} cases share a name"
    return cases


def feed_names(model: ModelProto) -> list[str]:
    """Inputs that are not initializers as well (IR version 3 asked for that)."""
    constants = {t.name for t in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in constants]


def _case(kind: str, test: Any) -> Case:
    if test.model is None:
        return Case(
            kind, test.name, Path(test.model_dir) / "model.onnx", None, test.rtol, test.atol
        )
    data = tuple((_arrays(i), _arrays(o)) for i, o in test.data_sets)
    return Case(kind, test.name, test.model, data, test.rtol, test.atol)


def _light_case(path: Path) -> Case:
    # As onnx's runner has it for the models that it calls real; their weights are made up.
    return Case("light", path.stem, path, None, rtol=1e-3, atol=1e-7)


def _light_data(path: Path, model: ModelProto) -> tuple[Data, Data]:
    """The ramp that onnx's runner feeds, and the outputs that lie beside the model."""
    inputs = []
    for info in model.graph.input:
        if info.name in feed_names(model):
            shape = tuple(d.dim_value or 1 for d in info.type.tensor_type.shape.dim)
            size = int(np.prod(shape))
            inputs.append((np.arange(size).reshape(shape) / size).astype(np.float32))
    outputs = [
        _read(path.with_name(f"{path.stem}_output_{i}.pb"), info.type)
        for i, info in enumerate(model.graph.output)
    ]
    return inputs, outputs


def _folder_data(folder: Path, model: ModelProto) -> tuple[Data, Data]:
    types = {i.name: i.type for i in model.graph.input}
    inputs = [types[name] for name in feed_names(model)]
    outputs = [o.type for o in model.graph.output]
    counted = len(list(folder.glob("input_*.pb")))
    return (
        [_read(folder / f"input_{i}.pb", type) for i, type in enumerate(inputs[:counted])],
        [_read(folder / f"output_{i}.pb", type) for i, type in enumerate(outputs)],
    )


def _read(path: Path, type: TypeProto) -> Any:
    data = path.read_bytes()
    match type.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        case _:
            return numpy_helper.to_array(TensorProto.FromString(data))


def _arrays(items: Data) -> list[Any]:
    return [numpy_helper.to_array(i) if isinstance(i, TensorProto) else i for i in items]
