"""The file of a built model: a shared library, and behind it what the library needs and offers.

    library | JSON | its length | SHA-256 of all before | magic

Loaders of shared libraries do not look behind what they load, so the file stays one; all that decides
whether it may run here can be read before any of it runs.  The weights lie apart, in one file.
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
MOST_CODE = 1 << 30  # Bytes.
ALIGNMENT = 64  # Of tensors, as TVM's code assumes it.
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.bin")
_MAGIC = b"tersor\0T"
_LENGTH = struct.Struct("<Q")
_FOOTER = struct.Struct("<32s8s")
Interface = list[tuple[str, TensorType]]


@dataclass(frozen=True)
class Parameter:
    """An array that functions of the library take behind the inputs, and where in the weights it lies;
    or how it is made of others when the library is loaded."""

    type: TensorType
    offset: int = 0
    derived: Derivation | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.type.shape) * self.type.dtype.numpy.itemsize


@dataclass(frozen=True)
class Function:
    """A function of the library.

    Attributes:
        sizes: of the open dims, that it is for; none: any sizes.
        parameters: places among the library's, in the order of the function.
    """

    sizes: tuple[tuple[str, int], ...] = ()
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a library needs and offers.

    Attributes:
        inputs, outputs: names and types.
        features: ISA features that the code uses.
        parameters: of all functions, each once.
        functions: the first is for any sizes.
        weights: the name of their file; None where there are no parameters.
        tvm: the version that built it.
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
        """The JSON behind the library."""
        data = {
            "format": FORMAT,
            "inputs": [[name, str(type)] for name, type in self.inputs],
            "outputs": [[name, str(type)] for name, type in self.outputs],
            "features": sorted(self.features),
            "parameters": [_told(p) for p in self.parameters],
            "functions": [[dict(f.sizes), f.parameters] for f in self.functions],
            "weights": self.weights,
            "tvm": self.tvm,
            "platform": self.platform,
        }
        return json.dumps(data, sort_keys=True).encode()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights' file."""
        held = (p for p in self.parameters if p.derived is None)
        return max((p.offset + p.size for p in held), default=0)

    def shapes_of(self, function: Function) -> tuple[tuple[int, ...], ...]:
        """Of the inputs, for a function that is for chosen sizes."""
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
    """Of a library that was built of ``graph``, with ``parameters`` held in ``weights`` but for those that
    are ``derived``."""
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
            Parameter(type, derived=derived[place])
            if place in derived
            else Parameter(type, next(offsets))
            for place, type in enumerate(types)
        ),
        tuple(functions),
        weights.name if weights is not None else None,
    )


def pack(library: bytes, description: Description) -> bytes:
    """The file: the library compressed (of small models there is as much code as there are weights, and
    kernels of one kind are alike), and what it tells."""
    told = description.to_bytes()
    body = lzma.compress(library) + told + _LENGTH.pack(len(told))
    return body + _FOOTER.pack(hashlib.sha256(body).digest(), _MAGIC)


def code(data: bytes) -> bytes:
    """The shared library in a file that :func:`describe` takes.

    Raises:
        InvalidModel: there is none.
    """
    body = memoryview(data)[: -_FOOTER.size - _LENGTH.size]
    (length,) = _LENGTH.unpack_from(data, len(body))
    unpacking = lzma.LZMADecompressor()
    try:
        made = unpacking.decompress(body[: len(body) - length], MOST_CODE)
    except lzma.LZMAError as error:
        raise InvalidModel(f"the library is damaged: {one_line(error, LONGEST)}") from None
    if not unpacking.eof:
        raise InvalidModel(
            f"the library is damaged: its code ends nowhere, or is over {MOST_CODE} bytes"
        )
    return made


def describe(data: bytes) -> Description:
    """What a file tells of its library. The file may be anyone's: none of it is run.

    Raises:
        InvalidModel: it is none, or damaged.
    """
    body, footer = memoryview(data)[: -_FOOTER.size], data[-_FOOTER.size :]
    if len(body) < _LENGTH.size or not footer.endswith(_MAGIC):
        raise InvalidModel("it is no library that tersor built, or cut short")
    if hashlib.sha256(body).digest() != _FOOTER.unpack(footer)[0]:
        raise InvalidModel("the library is damaged: its hash is not the one it carries")
    (length,) = _LENGTH.unpack(body[-_LENGTH.size :])
    try:
        told = json.loads(bytes(body[-_LENGTH.size - length : -_LENGTH.size]))
        if told["format"] != FORMAT:
            raise InvalidModel(
                f"library format {told['format']!r}, this tersor reads {FORMAT}; "
                "compile the model again"
            )
        return _description(told)
    except (
        KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        why = one_line(error, LONGEST)
        raise InvalidModel(f"what the library tells of itself is damaged: {why}") from None


def check_host(description: Description) -> None:
    """That a library can run on this machine.

    Raises:
        InvalidModel: why it cannot.
    """
    here = Description([], [], ())
    if description.platform != here.platform:
        raise InvalidModel(f"it was built for {description.platform}, this is {here.platform}")
    arch = cuda.arch_of(description.features)
    if arch:
        cuda.check_device(arch)
    missing = sorted(set(description.features) - Target.host().features - {arch})
    if missing:
        raise InvalidModel(f"it needs {', '.join(missing)}, which this processor has not")
    if _minor(description.tvm) != _minor(here.tvm):
        raise InvalidModel(
            f"it was built by TVM {description.tvm}, here is {here.tvm}; compile the model again"
        )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _description(told: dict[str, Any]) -> Description:
    description = Description(
        [(_text(name), _tensor(type)) for name, type in told["inputs"]],
        [(_text(name), _tensor(type)) for name, type in told["outputs"]],
        tuple(map(_text, told["features"])),
        tuple(_parameter(place, *parameter) for place, parameter in enumerate(told["parameters"])),
        tuple(
            Function(_sizes(sizes), tuple(map(_place, parameters)))
            for sizes, parameters in told["functions"]
        ),
        None if told["weights"] is None else _weights(told["weights"]),
        _text(told["tvm"]),
        _text(told["platform"]),
    )
    if description.weight_bytes and description.weights is None:
        raise ValueError("parameters, and no weights")
    _check_functions(description)
    return description


def _check_functions(description: Description) -> None:
    """Raises:
    ValueError: no function for any sizes, one for other dims than are open, or of other parameters.
    """
    if not description.functions or description.functions[0].sizes:
        raise ValueError("no function for any sizes")
    dims = [dim for _, type in description.inputs for dim in type.dims or ()]
    names = set[str]().union(*map(symbols, dims))
    for function in description.functions[1:]:
        if not names or {name for name, _ in function.sizes} != names:
            raise ValueError("a function that is not for sizes of the open dims")
        description.shapes_of(function)  # Raises where a dim has no such size.
    count = len(description.parameters)
    if any(place >= count for f in description.functions for place in f.parameters):
        raise ValueError("a function of parameters that are not there")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _weights(name: Any) -> str:
    if not _WEIGHTS.fullmatch(_text(name)):
        raise ValueError(f"{name!r} is no name of weights")
    return str(name)


def _tensor(text: str) -> TensorType:
    type = parse_type(text)
    if not isinstance(type, TensorType) or type.dims is None or type.dtype not in DTYPES:
        raise ValueError(f"{text!r} is no type of a tensor that TVM has")
    return type


def _told(parameter: Parameter) -> list[Any]:
    made = parameter.derived
    held = parameter.offset if made is None else [made.steps, made.sources]
    return [str(parameter.type), held]


def _parameter(place: int, type: Any, held: Any) -> Parameter:
    """Sources of a derived one are before it, and are none themselves."""
    if not isinstance(held, list):
        return Parameter(_tensor(type), _offset(held))
    steps, sources = held
    if not sources or any(_place(source) >= place for source in sources):
        raise ValueError("a parameter that is made of none before it")
    return Parameter(_tensor(type), derived=Derivation(tuple(map(tuple, steps)), tuple(sources)))


def _sizes(told: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((name, _natural(size, "size")) for name, size in told.items())


def _place(value: Any) -> int:
    return _natural(value, "place among the parameters")


def _offset(value: Any) -> int:
    if _natural(value, "place of a parameter") % ALIGNMENT:
        raise ValueError(f"{value!r} is no place of a parameter")
    return int(value)


def _natural(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no {what}")
    return value
