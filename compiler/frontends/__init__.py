"""Models of any kind to IR. The frontends themselves are imported when a model needs them."""

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
from tersor.frontends import folder, halves, torchscript
from tersor.ir import Graph, load

SAVED_BY_TORCH = (".pt2", ".pt", ".pth")


@dataclass
class Imported:
    """An imported model.

    Attributes:
        graph: its IR.
        original: the ONNX file that it came from, or its bytes; None where its interface is another
            (new names), and for models from torch.
        files: what belongs beside the compiled model (a tokenizer), by name in the folder it came from.
        remarks: what is worth knowing of the model, a line each.
        traced: whether it was run on example inputs to get the graph.
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
    ``fx.GraphModule``, a Hugging Face model directory (of sentence-transformers too), a graph of the IR or
    the file that one was saved to, or what was imported already.

    ``allow_hf_cache``: an ONNX file's external data may be links of the Hugging Face cache.
    ``trust``: also torch's ``.pt2``, ``.pt`` and ``.pth`` files, and a directory's pickled weights, which
    can run code when they are read.

    Raises:
        InvalidModel, Unsupported: what the frontends say.
        InvalidOption: a kind of model that is none of these.
    """
    names = {"input_names": input_names, "output_names": output_names}
    if isinstance(model, Imported):
        if input_names is None and output_names is None:
            return model
        return Imported(
            _renamed(model.graph.copy(), input_names, output_names),
            files=model.files,
            remarks=model.remarks,
        )
    if isinstance(model, (str, Path)) and Path(model).suffix == GRAPH and not Path(model).is_dir():
        from tersor.ops import TABLE

        model = load(model, TABLE)
    if isinstance(model, Graph):
        return Imported(_renamed(model, input_names, output_names))
    if isinstance(model, (str, Path)) and Path(model).is_dir():
        return _folder(Path(model), example_inputs, dynamic_shapes, names, trust)
    if isinstance(model, (str, Path)) and torchscript.is_torchscript(Path(model)):
        raise Unsupported(f"{model} is {torchscript.WHY_NOT}")
    if trust and isinstance(model, (str, Path)) and Path(model).suffix in SAVED_BY_TORCH:
        model = _frontend(model).load_saved(Path(model))
    if isinstance(model, (str, Path, bytes)) or _is_from(model, "onnx"):
        from tersor.frontends.onnx import import_model, model_bytes

        remarks: list[str] = []
        imported = import_model(model, allow_hf_cache=allow_hf_cache, remarks=remarks)
        graph = _renamed(imported, input_names, output_names)
        if input_names is not None or output_names is not None:
            return Imported(graph, remarks=remarks)
        original = Path(model) if isinstance(model, (str, Path)) else model_bytes(model)
        return Imported(graph, original, remarks=remarks)
    if not _is_from(model, "torch"):
        raise InvalidOption(
            f"a {type(model).__name__} is no model: give an ONNX file, a torch module or a model directory"
        )
    from tersor.frontends import torch as frontend

    if type(model).__name__ == "ExportedProgram":
        return Imported(frontend.import_exported(model, **names))
    graph = frontend.import_module(model, example_inputs, dynamic_shapes=dynamic_shapes, **names)
    return Imported(graph, traced=True)


def _folder(
    directory: Path, examples: Any, shapes: Any, names: dict[str, Any], trust: bool
) -> Imported:
    sentences = (directory / folder.MODULES).is_file()
    if not sentences and not any((directory / name).is_file() for name in folder.CONFIGS):
        raise InvalidModel(
            f"{directory}: a folder without config.json; give an ONNX file or a model folder"
        )
    frontend = _frontend(directory)
    load = frontend.load_sentences if sentences else frontend.load_pretrained
    loaded = load(directory, trust=trust)
    if examples is None:
        examples, shapes = loaded.examples, loaded.shapes
    graph = frontend.import_module(loaded.module, examples, dynamic_shapes=shapes, **names)
    types = set().union(*map(halves.float_types, folder.places(directory)))
    halves.hold_short(graph, types)
    files = folder.files_beside(directory)
    graph.metadata |= folder.labels(files)
    return Imported(graph, files=files, remarks=loaded.remarks, traced=True)


def _frontend(path: str | Path) -> ModuleType:
    """torch's frontend, for a model that needs it.

    Raises:
        Unsupported: torch is not installed.
    """
    try:
        return importlib.import_module("tersor.frontends.torch")
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"{path}: it needs the package {error.name!r}: pip install 'tersor[torch]'"
        ) from None


def _is_from(model: Any, package: str) -> bool:
    """Whether the model's class or a base of it comes from ``package``, without importing that."""
    bases = type(model).__mro__
    return package in sys.modules and any(b.__module__.split(".")[0] == package for b in bases)


def _renamed(graph: Graph, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Graph:
    """With the interface under the names that the user chose."""
    for kind, names, have in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        if names is not None and (len(names) != len(have) or len(set(names)) < len(names)):
            raise InvalidOption(
                f"{len(names)} {kind} names for {len(have)} {kind}s; they must differ and be as many"
            )
    if inputs is not None:
        graph.rename_inputs(inputs)
    if outputs is not None:
        graph.set_outputs(list(graph.outputs), outputs)
    return graph
