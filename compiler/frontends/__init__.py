"""Imports models of any kind into the IR. Each frontend is imported when a model needs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tersor.errors import InvalidModel, InvalidOption, Unsupported
from tersor.files.model import GRAPH
from tersor.frontends import folder, half_precision, torchscript
from tersor.ir import Graph, load

SAVED_BY_TORCH = (".pt2", ".pt", ".pth")


@dataclass
class Imported:
    """An imported model.

    Attributes:
        graph: its IR.
        original: the ONNX file or its bytes; None if the interface was renamed, and for models from torch.
        files: files of the model folder to copy next to the compiled model (a tokenizer), by name.
        remarks: what a user should know about the model, one line each.
        traced: whether the graph was traced by running the model on example inputs.
    """

    graph: Graph
    original: Path | bytes | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    traced: bool = False


def load_model(
    model: Any,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    allow_hf_cache: bool = False,
    trust: bool = False,
) -> Imported:
    """Imports an ONNX path, bytes or ModelProto, an ``nn.Module``, an ``ExportedProgram``, an
    ``fx.GraphModule``, a Hugging Face or sentence-transformers model directory, a graph of the IR, a saved
    ``.graph`` file, or an imported model.

    ``allow_hf_cache``: an ONNX file's external data may be links of the Hugging Face cache.
    ``trust``: allow torch's ``.pt2``, ``.pt`` and ``.pth`` files, and a directory's pickled weights, which
    can run code when they are read.

    Raises:
        InvalidModel, Unsupported: from the frontend.
        InvalidOption: another kind of model.
    """
    names = {"input_names": input_names, "output_names": output_names}
    if isinstance(model, Imported):
        if input_names is None and output_names is None:
            return model
        graph = _renamed(model.graph.copy(), **names)
        return Imported(graph, files=model.files, remarks=model.remarks)
    path = Path(model) if isinstance(model, (str, Path)) else None
    if path is not None and path.is_dir():
        return _from_folder(path, example_inputs, dynamic_shapes, names, trust)
    if path is not None and path.suffix == GRAPH:
        from tersor.ops import TABLE

        model = load(path, TABLE)
    if isinstance(model, Graph):
        return Imported(_renamed(model, **names))
    if path is not None and torchscript.is_torchscript(path):
        raise Unsupported(f"{model} is {torchscript.WHY_NOT}")
    if trust and path is not None and path.suffix in SAVED_BY_TORCH:
        model = _torch_frontend(path).load_saved(path)
    if isinstance(model, (str, Path, bytes)) or _is_from(model, "onnx"):
        return _from_onnx(model, names, allow_hf_cache)
    if not _is_from(model, "torch"):
        raise InvalidOption(
            f"a {type(model).__name__} is not a model: give an ONNX file, a torch module or a model directory"
        )
    from tersor.frontends import torch as frontend

    if type(model).__name__ == "ExportedProgram":
        return Imported(frontend.import_exported(model, **names))
    graph = frontend.import_module(model, example_inputs, dynamic_shapes=dynamic_shapes, **names)
    return Imported(graph, traced=True)


def _from_onnx(model: Any, names: dict[str, Any], allow_hf_cache: bool) -> Imported:
    from tersor.frontends.onnx import import_model, model_bytes

    remarks: list[str] = []
    graph = import_model(model, allow_hf_cache=allow_hf_cache, remarks=remarks)
    if any(value is not None for value in names.values()):
        return Imported(_renamed(graph, **names), remarks=remarks)
    original = Path(model) if isinstance(model, (str, Path)) else model_bytes(model)
    return Imported(graph, original, remarks=remarks)


def _from_folder(
    directory: Path, examples: Any, shapes: Any, names: dict[str, Any], trust: bool
) -> Imported:
    sentences = (directory / folder.MODULES).is_file()
    if not sentences and not any((directory / name).is_file() for name in folder.CONFIGS):
        raise InvalidModel(
            f"{directory}: a folder without config.json; give an ONNX file or a model folder"
        )
    frontend = _torch_frontend(directory)
    load = frontend.load_sentences if sentences else frontend.load_pretrained
    loaded = load(directory, trust=trust)
    if examples is None:
        examples, shapes = loaded.examples, loaded.shapes
    graph = frontend.import_module(loaded.module, examples, dynamic_shapes=shapes, **names)
    types = set().union(*map(half_precision.float_types, folder.module_folders(directory)))
    half_precision.store_as_halves(graph, types)
    files = folder.companion_files(directory)
    graph.metadata |= folder.labels(files)
    return Imported(graph, files=files, remarks=loaded.remarks, traced=True)


def _torch_frontend(path: str | Path) -> ModuleType:
    """The torch frontend, which the model at ``path`` needs.

    Raises:
        Unsupported: torch is not installed.
    """
    try:
        return importlib.import_module("tersor.frontends.torch")
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"{path}: needs the package {error.name!r}: pip install 'tersor[torch]'"
        ) from None


def _is_from(model: Any, package: str) -> bool:
    """Whether the model's class or one of its bases comes from ``package``, without importing it."""
    bases = type(model).__mro__
    return package in sys.modules and any(b.__module__.split(".")[0] == package for b in bases)


def _renamed(
    graph: Graph, input_names: Sequence[str] | None, output_names: Sequence[str] | None
) -> Graph:
    """``graph``, its inputs and outputs renamed if names are given."""
    for kind, names, count in (
        ("input", input_names, len(graph.inputs)),
        ("output", output_names, len(graph.outputs)),
    ):
        if names is not None and (len(names) != count or len(set(names)) < count):
            raise InvalidOption(
                f"{len(names)} {kind} names for {count} {kind}s: give one distinct name for each"
            )
    if input_names is not None:
        graph.rename_inputs(input_names)
    if output_names is not None:
        graph.set_outputs(list(graph.outputs), output_names)
    return graph
