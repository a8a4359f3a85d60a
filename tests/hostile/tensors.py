"""Tensors whose data does not match their type and dims."""

from __future__ import annotations

import numpy as np
from hostile.table import Refused, in_memory, text, with_initializer
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from tersor.errors import Unsupported

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def tensor(data_type: int = FLOAT, **fields: object) -> TensorProto:
    return TensorProto(data_type=data_type, **fields)  # type: ignore[arg-type]


def constant(proto: TensorProto) -> ModelProto:
    """The tensor as the value of a Constant node."""
    model = text("(float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.name = "c"
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="value", type=4).t.CopyFrom(proto)
    model.graph.node.insert(0, node)
    return model


def pair(indices: object, dims: list[int], values: object = (1.0, 1.0)) -> SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(indices), ""),
        dims,
    )


def sparse(proto: SparseTensorProto, count: int = 1) -> ModelProto:
    model = text("(float[2] x) => (float[2] y) { y = Relu (x) }")
    for i in range(count):
        proto.values.name = f"w{i}"
        model.graph.sparse_initializer.append(proto)
    return model


def sparse_constant(proto: SparseTensorProto) -> ModelProto:
    model = text("(float[2] x) => (float[2] y) { y = Relu (x) }")
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="sparse_value", type=11).sparse_tensor.CopyFrom(proto)
    model.graph.node.insert(0, node)
    return model


LARGE = 1 << 62

TENSORS = [
    Refused("no type", in_memory(with_initializer(tensor(99, dims=[2]))), "tensor 'w': unknown element type 99"),
    Refused("the undefined type", in_memory(with_initializer(tensor(0, dims=[2]))), "tensor 'w': unknown element type 0"),
    Refused("an unknown type in a Constant", in_memory(constant(tensor(99, dims=[2]))), "tensor 'c': unknown element type 99"),
    Refused("a negative dim", in_memory(with_initializer(tensor(dims=[-2]))), "tensor 'w': negative dim in [-2]"),
    Refused("a dim of 2^62", in_memory(with_initializer(tensor(dims=[LARGE]))), "tensor 'w': no array can have shape [4611686018427387904]"),
    Refused("dims whose product overflows", in_memory(with_initializer(tensor(dims=[1 << 32, 1 << 32]))), "tensor 'w': no array can have shape [4294967296, 4294967296]"),
    Refused("an empty array beyond all bounds", in_memory(with_initializer(tensor(dims=[0, LARGE]))), "tensor 'w': no array can have shape [0, 4611686018427387904]"),
    Refused("an impossible rank", in_memory(with_initializer(tensor(dims=[1] * 5000))), "tensor 'w': no array can have shape [5000 dims]"),
    Refused("missing gigabytes", in_memory(with_initializer(tensor(dims=[1 << 30]))), "tensor 'w': f32[1073741824] needs 1073741824 numbers, but float_data has 0"),
    Refused("raw data too short", in_memory(with_initializer(tensor(dims=[2], raw_data=b"1234"))), "tensor 'w': f32[2] needs 8 bytes, but raw_data has 4"),
    Refused("raw data too long", in_memory(with_initializer(tensor(dims=[1], raw_data=b"12345678"))), "tensor 'w': f32[1] needs 4 bytes, but raw_data has 8"),
    Refused("packed raw data too short", in_memory(with_initializer(tensor(TensorProto.INT4, dims=[3], raw_data=b"1"))), "tensor 'w': i4[3] needs 2 bytes, but raw_data has 1"),
    Refused("raw data of strings", in_memory(with_initializer(tensor(TensorProto.STRING, dims=[1], raw_data=b"1"))), "tensor 'w': strings cannot be in raw_data"),
    Refused("raw data of a Constant too short", in_memory(constant(tensor(dims=[2], raw_data=b"1234"))), "tensor 'c': f32[2] needs 8 bytes, but raw_data has 4"),
    Refused("floats too few", in_memory(with_initializer(tensor(dims=[3], float_data=[1.0]))), "tensor 'w': f32[3] needs 3 numbers, but float_data has 1"),
    Refused("floats too many", in_memory(with_initializer(tensor(dims=[1], float_data=[1.0, 2.0]))), "tensor 'w': f32[1] needs 1 numbers, but float_data has 2"),
    Refused("floats of a Constant too few", in_memory(constant(tensor(dims=[3], float_data=[1.0]))), "tensor 'c': f32[3] needs 3 numbers, but float_data has 1"),
    Refused("integers too few", in_memory(with_initializer(tensor(INT64, dims=[2], int64_data=[1]))), "tensor 'w': i64[2] needs 2 numbers, but int64_data has 1"),
    Refused("halves of complex numbers", in_memory(with_initializer(tensor(TensorProto.COMPLEX64, dims=[2], float_data=[1, 2, 3]))), "tensor 'w': c64[2] needs 4 numbers, but float_data has 3"),
    Refused("packed integers too many", in_memory(with_initializer(tensor(TensorProto.UINT4, dims=[2], int32_data=[1, 2]))), "tensor 'w': u4[2] needs 1 numbers, but int32_data has 2"),
    Refused("strings too few", in_memory(with_initializer(tensor(TensorProto.STRING, dims=[2], string_data=[b"a"]))), "tensor 'w': string[2] needs 2 numbers, but string_data has 1"),
    Refused("floats in place of integers", in_memory(with_initializer(tensor(INT64, dims=[1], float_data=[1.0]))), "tensor 'w': data of i64 must be in int64_data, not in float_data"),
    Refused("data twice", in_memory(with_initializer(tensor(dims=[1], raw_data=b"1234", float_data=[1.0]))), "tensor 'w': data in both raw_data and float_data"),
    Refused("a segment", in_memory(with_initializer(tensor(dims=[1], float_data=[1.0], segment=TensorProto.Segment(begin=0, end=1)))), "tensor 'w': segments of tensors, which ONNX removed, are not supported"),
    Refused("a sparse index past the end", in_memory(sparse(pair([1, 9], [2, 3]))), "sparse tensor 'w0' of [2, 3]: index 9 is out of bounds for axis 0 with size 6"),
    Refused("a negative sparse index", in_memory(sparse(pair([-1, 2], [2, 3]))), "sparse tensor 'w0' of [2, 3]: an index is negative"),
    Refused("a sparse index by axis past the end", in_memory(sparse(pair([[0, 1], [5, 0]], [2, 3]))), "sparse tensor 'w0' of [2, 3]: index 5 is out of bounds for axis 0 with size 2"),
    Refused("a negative sparse dim", in_memory(sparse(pair([1, 2], [-2, 3]))), "sparse tensor 'w0' of [-2, 3]: no array can have this shape"),
    Refused("sparse indices too few", in_memory(sparse(pair([1], [2, 3]))), "sparse tensor 'w0' of [2, 3]: values of shape [2] with indices of [1]"),
    Refused("sparse indices of type float", in_memory(sparse(pair([1.0, 2.0], [2, 3]))), "sparse tensor 'w0' of [2, 3]: indices are float64, not int64"),
    Refused("a matrix of sparse values", in_memory(sparse(pair([0, 1], [2, 3], [[1.0, 2.0]]))), "sparse tensor 'w0' of [2, 3]: values of shape [1, 2] with indices of [2]"),
    Refused("a sparse bomb", in_memory(sparse(pair([0, 1], [1 << 20, 1 << 20]))), "sparse tensor 'w0' of [1048576, 1048576]: the model's sparse tensors take more than 268435456 bytes as dense arrays, to which they are converted", Unsupported),
    Refused("a sparse bomb past 64 bits", in_memory(sparse(pair([0, 1], [LARGE, LARGE]))), "sparse tensor 'w0' of [4611686018427387904, 4611686018427387904]: the model's sparse tensors take more than 268435456 bytes as dense arrays, to which they are converted", Unsupported),
    Refused("a sparse bomb in a Constant", in_memory(sparse_constant(pair([0, 1], [1 << 40]))), "sparse tensor 'w' of [1099511627776]: the model's sparse tensors take more than 268435456 bytes as dense arrays, to which they are converted", Unsupported),
    Refused("a bomb of a thousand sparse tensors", in_memory(sparse(pair([0, 1], [1 << 20]), 1000)), "sparse tensor 'w64' of [1048576]: the model's sparse tensors take more than 268435456 bytes as dense arrays, to which they are converted", Unsupported),
]  # fmt: skip
