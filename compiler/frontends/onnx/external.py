"""Models that are too large for one protobuf: weights go to a file beside it.

Protobuf holds 2 GB at most. From ``INLINE_BYTES`` of weights, all but the small ones are written to
one file, mapped by the runtime, and streamed there: nothing here holds all of them in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from tersor.built import Built, Split, Weights
from tersor.frontends.onnx.exporter import Outside, export_model, refer
from tersor.frontends.onnx.load import read_model
from tersor.frontends.onnx.tensors import Tensors
from tersor.ir import DType, Encoding, Graph
from tersor.ops.onnx_schema import array_to_proto

INLINE_BYTES = 1 << 30  # Protobuf makes up to three copies in memory of what it writes.
SMALL_BYTES = 4096  # Runtimes read shapes and the like while they load the protobuf.


def export_built(graph: Graph) -> Built:
    """The file of ``graph``, and its weights beside it where they are many; equal graphs give equal
    bytes.

    Raises:
        Unsupported: as for :func:`export_model`.
    """
    large = _large(graph)
    if sum(e.nbytes for e in large) <= INLINE_BYTES:
        return _serialized(export_model(graph))
    weights = Weights(tuple(_bytes_as_stored(e.decode()) for e in large))
    outside: dict[Encoding, Outside] = dict(zip(large, _places(weights), strict=True))
    return Split(_serialized(export_model(graph, outside=outside)), weights)


def read_built(path: Path) -> Built:
    """A model as it is in a file; what it has in other files is laid out as :func:`export_built` does.

    Raises:
        InvalidModel: not a model, or its external data is not what it says.
    """
    model, files = read_model(path, allow_hf_cache=True)
    tensors = [t for t in tensors_of(model) if t.data_location == TensorProto.EXTERNAL]
    if not tensors:
        return path.read_bytes()
    held = Tensors(files)
    weights = Weights(tuple(_bytes_as_stored(held.array(t)) for t in tensors))
    for tensor, place in zip(tensors, _places(weights), strict=True):
        refer(tensor, place)
    return Split(_serialized(model), weights)


def external_files(model: ModelProto) -> list[str]:
    """Names of the files beside it that a model refers to, sorted."""
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
    """All tensors: initializers, sparse ones, those in attributes; of subgraphs and functions too."""
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
    """Constants that could lie outside, each encoding once, in the order of the graph."""
    constants = (v.encoding for g in graph.all_graphs() for v in g.constants.values())
    large = (e for e in constants if e is not None and e.is_dense and e.nbytes >= SMALL_BYTES)
    return list(dict.fromkeys(e for e in large if e.type.dtype is not DType.STRING))


def _places(weights: Weights) -> list[Outside]:
    pairs = zip(weights.offsets, weights.arrays, strict=True)
    return [Outside(weights.name, start, array.nbytes) for start, array in pairs]


def _bytes_as_stored(array: np.ndarray) -> np.ndarray:
    """The array itself; packed, where several elements share a byte."""
    if DType.of(array).bits >= 8:
        return array
    return np.frombuffer(array_to_proto(array).raw_data, np.uint8)


def _serialized(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except ValueError:  # Past 2 GB, which only names and small constants could have done.
        from tersor.errors import Unsupported

        raise Unsupported(
            "the model is over 2 GB without its large weights: no file holds it"
        ) from None
