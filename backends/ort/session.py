"""ONNX Runtime sessions: building models, opening them with chosen settings, running them by name."""

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

# Levels of ONNX Runtime's optimizer; each includes those before it.
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
    """The ONNX model of ``graph`` as ``choice`` lowers it; equal graphs give equal bytes. One
    file or, beyond protobuf's size limit, a file and its weights."""
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
        level: of ONNX Runtime's optimizer, one of ``LEVELS``.
        keeps_memory: whether the session keeps the activations' memory for the next run.

    Raises:
        InvalidModel: ONNX Runtime refuses the model; its reason, in one line.
    """
    if not isinstance(choice, Choice):
        choice = Choice.from_json(choice) if choice else Choice()
    if isinstance(model, Path):
        return _open(str(model), choice.session, level, keeps_memory)
    if isinstance(model, Split) and model.weights.file and model.weights.is_in_place():
        try:
            folder = model.weights.file.parent.resolve()
            return _open(model.data, choice.session, level, keeps_memory, folder)
        except InvalidModel:
            if model.weights.is_in_place():
                raise
            # Another process has just replaced the file; our mapping of the old one is still valid.
    # Without a folder, ONNX Runtime would look for the model's files in the working folder. Once the
    # session is open the weights are read or mapped.
    with tempfile.TemporaryDirectory(prefix="tersor-") as name:
        if isinstance(model, Split):
            model.weights.place(Path(name))
        return _open(main_file(model), choice.session, level, keeps_memory, Path(name))


def _open(
    source: bytes | str,
    options: SessionOptions,
    level: str,
    keeps_memory: bool,
    folder: Path | None = None,
) -> Session:
    """A session of a model, given as bytes or by its path. ``folder``: where its external data is; by
    default the path's own folder."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # Errors are raised as exceptions.
    settings.graph_optimization_level = LEVELS[level]
    settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = keeps_memory
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.spinning else "0"
    )
    if folder is not None:
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    try:
        session = ort.InferenceSession(
            source,
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(options.disabled_optimizers) or None,
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base.
        raise InvalidModel(f"ONNX Runtime refuses the model: {_one_line(error)}") from None
    return Session(session)


class Session:
    """An open model.

    Attributes:
        own: ONNX Runtime's session.
    """

    def __init__(self, own: ort.InferenceSession) -> None:
        self.own = own
        self._input_names = {i.name for i in own.get_inputs()}
        self._output_names = [o.name for o in own.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or does not fit.
        """
        names = self._input_names
        for name in sorted(names - inputs.keys()):
            raise InvalidOption(
                f"input {name!r} is missing; the model takes {', '.join(sorted(names))}"
            )
        for name in sorted(inputs.keys() - names):
            raise InvalidOption(f"no input {name!r}; the model takes {', '.join(sorted(names))}")
        try:
            outputs = self.own.run(
                self._output_names, {k: np.asarray(v) for k, v in inputs.items()}
            )
        except Exception as error:
            raise InvalidOption(
                f"the model does not take these inputs ({_sizes(inputs)}): {_one_line(error)}"
            ) from None
        return dict(zip(self._output_names, outputs, strict=True))


def examine(model: Built) -> None:
    """Does nothing: an ONNX model contains no machine code."""


def interface(
    model: Path, choice: Mapping[str, object]
) -> tuple[list[tuple[str, ValueType]], list[tuple[str, ValueType]]]:
    """Names and types of a model's inputs and outputs as ONNX Runtime reports them; dims only where they
    are fixed.

    Raises:
        InvalidModel: ONNX Runtime refuses the model.
    """
    session = open_session(model, choice).own
    return _types(session.get_inputs()), _types(session.get_outputs())


def companions(model: Path) -> list[str]:
    """Names of the files in its folder that a model refers to.

    Raises:
        InvalidModel: not a model.
    """
    return external_files(read_model(model)[0])


def _types(listed: Sequence[Any]) -> list[tuple[str, ValueType]]:
    return [(entry.name, _type(entry.type, entry.shape)) for entry in listed]


def _type(text: str, shape: Sequence[int | str | None] | None) -> ValueType:
    """``tensor(float)`` and ``[None, 'batch', 8]`` as a type; unknown unless it is a tensor."""
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    if not text.startswith("tensor(") or name not in TensorProto.DataType.keys():  # noqa: SIM118
        return UnknownType()
    dims = tuple(d if isinstance(d, int) else None for d in shape or ())
    return TensorType(FROM_ONNX[TensorProto.DataType.Value(name)], dims if shape else None)


class Evaluator:
    """Runs graphs in ONNX Runtime. The sessions of the last two graphs are kept (two are often compared),
    so a graph must not change between calls.

    A graph without inputs computes constants: it is run once, unoptimized. Sums of integer products are
    exact, also where this processor's instructions would overflow."""

    def __init__(self) -> None:
        self._sessions: list[tuple[Graph, Session]] = []
        # Sessions run in turn, and idle threads that spin slow the others.
        session = SessionOptions(spinning=False)
        self._choice = replace(Choice.of(Target.host(), portable=True), session=session)

    def __call__(self, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        choice = self._choice
        if not graph.inputs:
            return open_session(build(graph, choice), choice, level="none").run(inputs)
        entry = next((entry for entry in self._sessions if entry[0] is graph), None)
        if entry is None:
            del self._sessions[
                :-1
            ]  # While a session opens, its weights are in memory several times.
            # Batches vary in size and are not timed, so memory is better left to other sessions.
            entry = (graph, open_session(build(graph, choice), choice, keeps_memory=False))
        self._sessions = [*(other for other in self._sessions if other is not entry), entry][-2:]
        return entry[1].run(inputs)


def _sizes(inputs: Mapping[str, np.ndarray]) -> str:
    """``x 1x3200, sr scalar``"""
    shapes = {name: "x".join(map(str, np.shape(array))) for name, array in inputs.items()}
    return ", ".join(f"{name} {shape or 'scalar'}" for name, shape in shapes.items())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
