"""Sessions of ONNX Runtime: opened under a choice of settings, fed and read by name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from tersor.backends.ort.lower import lower
from tersor.backends.ort.options import Choice, SessionOptions
from tersor.built import Built, Split, main_file
from tersor.errors import InvalidModel, InvalidOption
from tersor.frontends.onnx import export_built, external_files, read_model
from tersor.ir import Graph, TensorType, UnknownType, ValueType
from tersor.ops.onnx_schema import FROM_ONNX
from tersor.pipeline import legality
from tersor.pipeline.report import Decoded
from tersor.target import Target

# Of ONNX Runtime's own optimizer; each has what those before it have.
LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def build(
    graph: Graph, choice: Choice | None = None, decoded: list[Decoded] | None = None
) -> Built:
    """The ONNX model of ``graph`` as ``choice`` lowers it; equal graphs give equal bytes. Its file
    alone, or, where protobuf cannot hold it, that and its weights."""
    lowered = lower(graph, (choice or Choice()).lower, decoded)
    legality.check("emission", lowered)
    return export_built(lowered)


def open_session(
    model: Built | Path,
    choice: Choice | Mapping[str, object] | None = None,
    *,
    level: str = "all",
    keeps_memory: bool = True,
) -> Session:
    """A session on the CPU.

    Args:
        level: how much ONNX Runtime's own optimizer may do, of ``LEVELS``.
        keeps_memory: whether a session keeps what activations took at the largest sizes, for the next run.

    Raises:
        InvalidModel: ONNX Runtime does not take the model; its reason, in one line.
    """
    if not isinstance(choice, Choice):
        choice = Choice.from_json(choice) if choice else Choice()
    if isinstance(model, Path):
        return _opened(str(model), choice.session, level, keeps_memory)
    if isinstance(model, Split) and model.weights.file and model.weights.is_in_place():
        try:
            folder = model.weights.file.parent.resolve()
            return _opened(model.data, choice.session, level, keeps_memory, folder)
        except InvalidModel:
            if model.weights.is_in_place():
                raise
            # Another process has replaced the file meanwhile; what is mapped of it we still have.
    # Without a folder of its own, what the model names would be looked for in the working folder. When
    # the session is open the weights are read or mapped.
    with tempfile.TemporaryDirectory(prefix="tersor-") as name:
        if isinstance(model, Split):
            model.weights.place(Path(name))
        return _opened(main_file(model), choice.session, level, keeps_memory, Path(name))


def _opened(
    source: bytes | str,
    options: SessionOptions,
    level: str,
    keeps_memory: bool,
    folder: Path | None = None,
) -> Session:
    """A session of a model, which is given whole or by its path. ``folder``: all that it may find
    beside it; of a path, what lies there."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # Errors come as exceptions.
    settings.graph_optimization_level = LEVELS[level]
    settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = keeps_memory
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.spinning else "0"
    )
    if folder is not None:
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    try:
        opened = ort.InferenceSession(
            source,
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(options.disabled_optimizers) or None,
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base of theirs.
        raise InvalidModel(f"ONNX Runtime refuses the model: {_one_line(error)}") from None
    return Session(opened)


class Session:
    """An open model.

    Attributes:
        own: ONNX Runtime's session.
    """

    def __init__(self, own: ort.InferenceSession) -> None:
        self.own = own
        self._takes = {i.name for i in own.get_inputs()}
        self._gives = [o.name for o in own.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or does not fit.
        """
        takes = self._takes
        for name in sorted(takes - inputs.keys()):
            raise InvalidOption(
                f"input {name!r} is missing; the model takes {', '.join(sorted(takes))}"
            )
        for name in sorted(inputs.keys() - takes):
            raise InvalidOption(f"no input {name!r}; the model takes {', '.join(sorted(takes))}")
        try:
            made = self.own.run(self._gives, {k: np.asarray(v) for k, v in inputs.items()})
        except Exception as error:
            raise InvalidOption(
                f"the model does not take these inputs: {_one_line(error)}"
            ) from None
        return dict(zip(self._gives, made, strict=True))


def examine(model: Built) -> None:
    """Nothing: an ONNX model is no machine code."""


def interface(
    model: Path, choice: Mapping[str, object]
) -> tuple[list[tuple[str, ValueType]], list[tuple[str, ValueType]]]:
    """Names and types of a model's inputs and of its outputs, once ONNX Runtime has opened it; of dims,
    only those that are fixed.

    Raises:
        InvalidModel: ONNX Runtime does not take the model.
    """
    session = open_session(model, choice).own
    return _types(session.get_inputs()), _types(session.get_outputs())


def beside(model: Path) -> list[str]:
    """Names of the files beside it that a model refers to.

    Raises:
        InvalidModel: not a model.
    """
    return external_files(read_model(model)[0])


def _types(listed: Sequence[Any]) -> list[tuple[str, ValueType]]:
    return [(entry.name, _type(entry.type, entry.shape)) for entry in listed]


def _type(text: str, shape: Sequence[int | str | None] | None) -> ValueType:
    """``tensor(float)`` and ``[None, 'batch', 8]`` as a type; what is no tensor is unknown."""
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    if not text.startswith("tensor(") or name not in TensorProto.DataType.keys():  # noqa: SIM118
        return UnknownType()
    dims = tuple(d if isinstance(d, int) else None for d in shape or ())
    return TensorType(FROM_ONNX[TensorProto.DataType.Value(name)], dims if shape else None)


class Evaluator:
    """Runs graphs in ONNX Runtime. The sessions of the last two graphs are kept (one is often compared
    with another), so a graph that was given may not change while it is given again.

    A graph without inputs is constants and what follows from them: it is run once, as it is written.
    Sums of integer products are exact, also where this processor's usual ones overflow."""

    def __init__(self) -> None:
        self._held: list[tuple[Graph, Session]] = []
        # Several of them run in turn, and idle threads that spin slow the others.
        session = SessionOptions(spinning=False)
        self._choice = replace(Choice.of(Target.host(), portable=True), session=session)

    def __call__(self, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        choice = self._choice
        if not graph.inputs:
            return open_session(build(graph, choice), choice, level="none").run(inputs)
        found = next((held for held in self._held if held[0] is graph), None)
        if found is None:
            del self._held[:-1]  # While a session is opened, its weights are there several times.
            # Batches are of many sizes, and it is not timed: other sessions have that memory.
            found = (graph, open_session(build(graph, choice), choice, keeps_memory=False))
        self._held = [*(held for held in self._held if held is not found), found][-2:]
        return found[1].run(inputs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
