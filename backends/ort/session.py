"""Sessions of ONNX Runtime: opened under a choice of settings, fed and read by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tersor.backends.ort.lower import lower
from tersor.backends.ort.options import Choice, LowerOptions
from tersor.errors import InvalidModel, InvalidOption
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Graph


def build(graph: Graph, choice: Choice | None = None) -> bytes:
    """The ONNX file of ``graph`` as ``choice`` lowers it; equal graphs give equal bytes."""
    options = (choice or Choice()).lower
    return bytes(export_model(lower(graph, options)).SerializeToString(deterministic=True))


def open_session(model: bytes | Path, choice: Choice | Mapping[str, Any] | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        InvalidModel: ONNX Runtime does not take the model; its reason, in one line.
    """
    if not isinstance(choice, Choice):
        choice = Choice.from_json(dict(choice)) if choice else Choice()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = choice.session.threads
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if choice.session.spinning else "0"
    )
    disabled = list(choice.session.disabled_optimizers)
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(
            source,
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled or None,
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base of theirs.
        raise InvalidModel(f"ONNX Runtime refuses the model: {_one_line(error)}") from None


def run(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name.

    Raises:
        InvalidOption: an input is missing, unknown, or does not fit.
    """
    expected = {i.name for i in session.get_inputs()}
    for name in sorted(expected - inputs.keys()):
        raise InvalidOption(
            f"input {name!r} is missing; the model takes {', '.join(sorted(expected))}"
        )
    for name in sorted(inputs.keys() - expected):
        raise InvalidOption(f"no input {name!r}; the model takes {', '.join(sorted(expected))}")
    names = [o.name for o in session.get_outputs()]
    try:
        made = session.run(names, {k: np.asarray(v) for k, v in inputs.items()})
    except Exception as error:
        raise InvalidOption(f"the model does not take these inputs: {_one_line(error)}") from None
    return dict(zip(names, made, strict=True))


class Evaluator:
    """Runs graphs in ONNX Runtime. The session of the last graph is kept, so a graph that was given
    may not change while it is given again."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._session: Any = None

    def __call__(self, graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph is not self._graph:
            model = build(graph, Choice(LowerOptions(portable=True)))
            self._graph, self._session = graph, open_session(model)
        return run(self._session, inputs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
