"""Models with their weights in a separate file.

A protobuf has at most 2 GB. Models with more than ``INLINE_BYTES`` of weights store all but the small ones in
one file, which the runtime maps into memory. The weights are streamed to it, never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from tersor.built import Built, Split, Weights
from tersor.errors import Unsupported
from tersor.frontends.onnx.exporter import ExternalRange, export_model, refer
from tersor.frontends.onnx.load import read_model
from tersor.frontends.onnx.tensors import Tensors
from tersor.ir import DType, Encoding, Graph
from tersor.ops.onnx_schema import array_to_proto

INLINE_BYTES = 1 << 30  # Protobuf makes up to three copies in memory when it serializes.
SMALL_BYTES = (
    4096  # Smaller constants stay in the protobuf: runtimes read shapes while they load it.
)


def export_built(graph: Graph) -> Built:
    """``graph`` as an ONNX file, with a separate weights file if it is large. Equal graphs give equal bytes.

    Raises:
        Unsupported: as for :func:`export_model`.
    """
    large = _large(graph)
    if sum(e.nbytes for e in large) <= INLINE_BYTES:
        return _serialized(export_model(graph))
    weights = Weights(tuple(_as_stored(e.decode()) for e in large))
    external: dict[Encoding, ExternalRange] = dict(zip(large, _ranges(weights), strict=True))
    return Split(_serialized(export_model(graph, external=external)), weights)


def read_built(path: Path) -> Built:
    """An ONNX file, with its external data in the layout of :func:`export_built`.

    Raises:
        InvalidModel: not a model, or its external data does not match.
    """
    model, files = read_model(path, allow_hf_cache=True)
    tensors = [t for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL]
    if not tensors:
        return path.read_bytes()
    reader = Tensors(files)
    weights = Weights(tuple(_as_stored(reader.array(t)) for t in tensors))
    for tensor, place in zip(tensors, _ranges(weights), strict=True):
        refer(tensor, place)
    return Split(_serialized(model), weights)


def external_files(model: ModelProto) -> list[str]:
    """The locations of a model's external data, sorted."""
    return sorted(
        {
            entry.value
            for tensor in tensors_of(model)
            if tensor.data_location == TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors of a model, its subgraphs and functions: initializers, sparse ones, and in attributes."""
    graphs: list[GraphProto] = [model.graph]
    nodes = [n for function in model.functions for n in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                yield from _tensors_of(attribute)
                graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _tensors_of(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for tensor in (*sparse, *attribute.sparse_tensors):
        yield from (tensor.values, tensor.indices)


def _large(graph: Graph) -> list[Encoding]:
    """Encodings of constants that may be external, in the order of the graph."""
    constants = (v.encoding for g in graph.all_graphs() for v in g.constants.values())
    large = (e for e in constants if e is not None and e.is_dense and e.nbytes >= SMALL_BYTES)
    return list(dict.fromkeys(e for e in large if e.type.dtype is not DType.STRING))


def _ranges(weights: Weights) -> list[ExternalRange]:
    pairs = zip(weights.offsets, weights.arrays, strict=True)
    return [ExternalRange(weights.name, start, array.nbytes) for start, array in pairs]


def _as_stored(array: np.ndarray) -> np.ndarray:
    """The array; packed bytes if several elements share one."""
    if DType.of(array).bits >= 8:
        return array
    return np.frombuffer(array_to_proto(array).raw_data, np.uint8)


def _serialized(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except ValueError:
        raise Unsupported(
            "the model is over 2 GB without its large weights, more than a protobuf can store"
        ) from None
