"""The file of a built model: a compressed shared library, followed by its description.

    library (LZMA) | JSON | length of the JSON | SHA-256 of all before | magic

The description determines whether the library can run here, before any of its code is loaded.  The weights
are in a separate file.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import platform
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import tvm

from tersor.backends.tvm import cuda
from tersor.backends.tvm.derive import Derivation
from tersor.backends.tvm.lowering import DTYPES
from tersor.built import Weights
from tersor.errors import LONGEST, InvalidModel, one_line
from tersor.ir import DType, Graph, TensorType
from tersor.ir.dims import symbols
from tersor.ir.types import parse_type
from tersor.target import Target

FORMAT = 4
MAX_CODE = 1 << 30  # Bytes of the shared library, decompressed.
ALIGNMENT = 64  # Of tensors, which TVM's code assumes.
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.bin")
_MAGIC = b"tersor\0T"
_LENGTH = struct.Struct("<Q")
_FOOTER = struct.Struct("<32s8s")
Interface = list[tuple[str, TensorType]]


@dataclass(frozen=True)
class Parameter:
    """An array that functions of the library take after the inputs: its offset in the weights, or its
    derivation from others when the library is loaded."""

    type: TensorType
    offset: int = 0
    derived: Derivation | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.type.shape) * self.type.dtype.numpy.itemsize


@dataclass(frozen=True)
class Function:
    """A compiled function of the library.

    Attributes:
        sizes: of the open dims that it is compiled for; empty: any sizes.
        parameters: indices of the library's parameters, in the function's order.
    """

    sizes: tuple[tuple[str, int], ...] = ()
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Description:
    """The requirements and interface of a library.

    Attributes:
        inputs, outputs: names and types.
        features: ISA features that the code uses.
        parameters: of all functions, without duplicates.
        functions: the first is for any sizes.
        weights: the name of the weights file; None without parameters.
        tvm: the version of TVM that built it.
        platform: the system and processor family that it runs on.
    """

    inputs: Interface
    outputs: Interface
    features: tuple[str, ...]
    parameters: tuple[Parameter, ...] = ()
    functions: tuple[Function, ...] = (Function(),)
    weights: str | None = None
    tvm: str = tvm.__version__
    platform: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")

    def to_bytes(self) -> bytes:
        """The description as JSON."""
        data = {
            "format": FORMAT,
            "inputs": [[name, str(type)] for name, type in self.inputs],
            "outputs": [[name, str(type)] for name, type in self.outputs],
            "features": sorted(self.features),
            "parameters": [_parameter_data(p) for p in self.parameters],
            "functions": [[dict(f.sizes), f.parameters] for f in self.functions],
            "weights": self.weights,
            "tvm": self.tvm,
            "platform": self.platform,
        }
        return json.dumps(data, sort_keys=True).encode()

    @property
    def weight_bytes(self) -> int:
        """The size of the weights file."""
        stored = (p for p in self.parameters if p.derived is None)
        return max((p.offset + p.size for p in stored), default=0)

    def shapes_of(self, function: Function) -> tuple[tuple[int, ...], ...]:
        """The input shapes of a function for fixed sizes."""
        sizes = dict(function.sizes)
        return tuple(type.at(sizes) for _, type in self.inputs)


def describe_graph(
    graph: Graph,
    features: Sequence[str],
    weights: Weights | None,
    parameters: Sequence[np.ndarray],
    derived: Mapping[int, Derivation],
    functions: Sequence[Function],
) -> Description:
    """The description of a library built from ``graph``; ``weights`` has the ``parameters`` that are not
    ``derived``."""
    inputs, outputs = (
        [(name, type) for name, type in side if isinstance(type, TensorType)]
        for side in graph.signature()
    )
    types = [TensorType(DType.of(p), p.shape) for p in parameters]
    offsets = iter(weights.offsets if weights is not None else [])
    return Description(
        inputs,
        outputs,
        tuple(features),
        tuple(
            Parameter(type, derived=derived[index])
            if index in derived
            else Parameter(type, next(offsets))
            for index, type in enumerate(types)
        ),
        tuple(functions),
        weights.name if weights is not None else None,
    )


def pack(library: bytes, description: Description) -> bytes:
    """The file: the library, compressed (small models have as much code as weights, and kernels are alike),
    and its description."""
    data = description.to_bytes()
    body = lzma.compress(library) + data + _LENGTH.pack(len(data))
    return body + _FOOTER.pack(hashlib.sha256(body).digest(), _MAGIC)


def code(data: bytes) -> bytes:
    """The shared library in a file that :func:`describe` accepts.

    Raises:
        InvalidModel: it is damaged.
    """
    body = memoryview(data)[: -_FOOTER.size - _LENGTH.size]
    (length,) = _LENGTH.unpack_from(data, len(body))
    decompressor = lzma.LZMADecompressor()
    try:
        library = decompressor.decompress(body[: len(body) - length], MAX_CODE)
    except lzma.LZMAError as error:
        raise InvalidModel(f"the library is damaged: {one_line(error, LONGEST)}") from None
    if not decompressor.eof:
        raise InvalidModel(
            f"the library is damaged: its code is truncated, or over {MAX_CODE} bytes"
        )
    return library


def describe(data: bytes) -> Description:
    """The description in a file. The file is untrusted: none of it is run.

    Raises:
        InvalidModel: it is not a library that tersor built, or damaged.
    """
    body, footer = memoryview(data)[: -_FOOTER.size], data[-_FOOTER.size :]
    if len(body) < _LENGTH.size or not footer.endswith(_MAGIC):
        raise InvalidModel("it is not a library that tersor built, or truncated")
    if hashlib.sha256(body).digest() != _FOOTER.unpack(footer)[0]:
        raise InvalidModel(
            "the library is damaged: its hash does not match; compile the model again"
        )
    (length,) = _LENGTH.unpack(body[-_LENGTH.size :])
    try:
        fields = json.loads(bytes(body[-_LENGTH.size - length : -_LENGTH.size]))
        if fields["format"] != FORMAT:
            raise InvalidModel(
                f"it has library format {fields['format']!r}, this tersor reads {FORMAT}; "
                "compile the model again"
            )
        return _description(fields)
    except (
        KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        why = one_line(error, LONGEST)
        raise InvalidModel(f"the library's description is damaged: {why}") from None


def check_host(description: Description) -> None:
    """Checks that a library can run on this machine.

    Raises:
        InvalidModel: it cannot.
    """
    here = Description([], [], ())
    if description.platform != here.platform:
        raise InvalidModel(
            f"it was built for {description.platform}, this machine is {here.platform}"
        )
    arch = cuda.arch_of(description.features)
    if arch:
        cuda.check_device(arch)
    missing = sorted(set(description.features) - Target.host().features - {arch})
    if missing:
        raise InvalidModel(f"it needs {', '.join(missing)}, which this processor lacks")
    if _minor(description.tvm) != _minor(here.tvm):
        raise InvalidModel(
            f"it was built by TVM {description.tvm}, installed is {here.tvm}; compile the model again"
        )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _description(fields: dict[str, Any]) -> Description:
    description = Description(
        [(_text(name), _tensor(type)) for name, type in fields["inputs"]],
        [(_text(name), _tensor(type)) for name, type in fields["outputs"]],
        tuple(map(_text, fields["features"])),
        tuple(
            _parameter(index, *parameter) for index, parameter in enumerate(fields["parameters"])
        ),
        tuple(
            Function(_sizes(sizes), tuple(map(_index, parameters)))
            for sizes, parameters in fields["functions"]
        ),
        None if fields["weights"] is None else _weights(fields["weights"]),
        _text(fields["tvm"]),
        _text(fields["platform"]),
    )
    if description.weight_bytes and description.weights is None:
        raise ValueError("parameters without weights")
    _check_functions(description)
    return description


def _check_functions(description: Description) -> None:
    """Checks the functions' sizes and parameters.

    Raises:
        ValueError: no function for any sizes, sizes that do not match the open dims, or unknown parameters.
    """
    if not description.functions or description.functions[0].sizes:
        raise ValueError("no function for any sizes")
    dims = [dim for _, type in description.inputs for dim in type.dims or ()]
    names = set[str]().union(*map(symbols, dims))
    for function in description.functions[1:]:
        if not names or {name for name, _ in function.sizes} != names:
            raise ValueError("a function whose sizes do not match the open dims")
        description.shapes_of(function)  # Raises if a dim cannot have such a size.
    count = len(description.parameters)
    if any(index >= count for f in description.functions for index in f.parameters):
        raise ValueError("a function of unknown parameters")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _weights(name: Any) -> str:
    if not _WEIGHTS.fullmatch(_text(name)):
        raise ValueError(f"{name!r} is not the name of a weights file")
    return str(name)


def _tensor(text: str) -> TensorType:
    type = parse_type(text)
    if not isinstance(type, TensorType) or type.dims is None or type.dtype not in DTYPES:
        raise ValueError(f"{text!r} is not a tensor type of TVM's")
    return type


def _parameter_data(parameter: Parameter) -> list[Any]:
    derived = parameter.derived
    source = parameter.offset if derived is None else [derived.steps, derived.sources]
    return [str(parameter.type), source]


def _parameter(index: int, type: Any, source: Any) -> Parameter:
    """A parameter; the sources of a derived one precede it."""
    if not isinstance(source, list):
        return Parameter(_tensor(type), _offset(source))
    steps, sources = source
    if not sources or any(_index(source) >= index for source in sources):
        raise ValueError("a parameter that is not derived from earlier ones")
    return Parameter(_tensor(type), derived=Derivation(tuple(map(tuple, steps)), tuple(sources)))


def _sizes(sizes: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((name, _natural(size, "size")) for name, size in sizes.items())


def _index(value: Any) -> int:
    return _natural(value, "index of a parameter")


def _offset(value: Any) -> int:
    if _natural(value, "offset of a parameter") % ALIGNMENT:
        raise ValueError(f"{value!r} is not a valid offset of a parameter")
    return int(value)


def _natural(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a valid {what}")
    return value
