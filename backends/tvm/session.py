"""TVM sessions: checked libraries are loaded and run by name.

A library is loaded from a private copy of the checked bytes: they cannot be replaced in between, and each
session has its own library, in which TVM keeps state.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

import tersor.backends.tvm.formats  # noqa: F401  Libraries name the steps by which they pack.
from tersor.backends.tvm import cuda, host  # noqa: F401  (what libraries call)
from tersor.backends.tvm.derive import compute
from tersor.backends.tvm.library import (
    ALIGNMENT,
    Description,
    Interface,
    Parameter,
    check_host,
    code,
    describe,
)
from tersor.backends.tvm.link import load, release
from tersor.backends.tvm.lowering import DTYPES, as_stored
from tersor.backends.tvm.module import function_name
from tersor.backends.tvm.options import Choice
from tersor.built import Built, Split, Weights, main_file
from tersor.errors import InvalidModel, InvalidOption, Unsupported, one_line
from tersor.ir import DType, TensorType
from tersor.ir.dims import evaluate, symbols
from tersor.target import request_amx

_Call = tuple[Any, list[Any]]


def open_session(
    model: Built | Path, choice: Choice | Mapping[str, object] | None = None
) -> Session:
    """A session on the CPU, or on the first GPU. This runs the model's code, which must be trusted.

    Raises:
        InvalidModel: the library is damaged, or this machine cannot run it.
        Unsupported: the system does not let this process use the processor's tiles.
    """
    if not isinstance(choice, Choice):
        choice = Choice.from_json(choice) if choice else Choice()
    data = model.read_bytes() if isinstance(model, Path) else main_file(model)
    description = describe(data)
    check_host(description)
    if "amx_int8" in description.features and not request_amx():
        raise Unsupported("it uses AMX, and the system does not let this process use its tiles")
    weights = _weights(model, description)
    device = tvm.cuda(0) if cuda.arch_of(description.features) else tvm.cpu()
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "model.so"
        path.write_bytes(code(data))
        try:
            module = load(path, choice.threads or choice.cores)
            machine = relax.VirtualMachine(module, device)
            functions = [machine[function_name(i)] for i in range(len(description.functions))]
        except Exception as error:
            raise InvalidModel(
                f"the system does not load the library: {one_line(error, 300)}"
            ) from None
    session = Session(description, functions, weights, device)
    weakref.finalize(session, release, module)
    return session


def examine(model: Built) -> None:
    """Checks that the model can run on this machine; none of it is run.

    Raises:
        InvalidModel: the library is damaged, or why it cannot.
    """
    check_host(describe(main_file(model)))


def interface(model: Path, choice: Mapping[str, object]) -> tuple[Interface, Interface]:
    """Names and types of a model's inputs and outputs, from its description; none of it is run.

    Raises:
        InvalidModel: the library is damaged, or ``choice`` is none.
    """
    Choice.from_json(choice)
    description = describe(model.read_bytes())
    return description.inputs, description.outputs


def companions(model: Path) -> list[str]:
    """Names of the files in its folder that a model refers to.

    Raises:
        InvalidModel: the library is damaged.
    """
    weights = describe(model.read_bytes()).weights
    return [] if weights is None else [weights]


class Session:
    """A loaded library with its weights. Threads may share it; they run one after the other."""

    def __init__(
        self,
        description: Description,
        functions: Sequence[Any],
        weights: np.ndarray,
        device: Any,
    ) -> None:
        # A device with separate memory: arguments and results are copied.
        self._device = None if device == tvm.cpu() else device
        self._inputs = description.inputs
        self._names = frozenset(name for name, _ in description.inputs)
        self._dtypes = [type.dtype.numpy for _, type in description.inputs]
        self._outputs = [name for name, _ in description.outputs]
        # numpy's DLPack does not know bfloat16.
        self._output_dtypes = [type.dtype.numpy for _, type in description.outputs]
        self._copied = [
            type.dtype is DType.BF16 or self._device is not None for _, type in description.outputs
        ]
        self._weights = weights
        tensors = [self._on_device(t) for t in parameters(weights, description.parameters)]
        # Functions and their arguments after the inputs.
        self._calls: list[_Call] = [
            (function, [tensors[place] for place in described.parameters])
            for function, described in zip(functions, description.functions, strict=True)
        ]
        self._call = self._calls[0]
        self._for_shapes = {
            description.shapes_of(described): call
            for call, described in zip(self._calls[1:], description.functions[1:], strict=True)
        }
        self._arguments: list[Any] = [None] * len(self._inputs)
        # The last shapes that passed the check; ``_call`` is for them.
        self._fitting: list[tuple[int, ...]] = []
        self._copies: list[tuple[np.ndarray, Any] | None] = [None] * len(self._inputs)
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or does not fit.
        """
        if inputs.keys() != self._names:
            raise _other_names([name for name, _ in self._inputs], inputs)
        arrays = [np.asarray(inputs[name]) for name, _ in self._inputs]
        with self._lock:
            self._check(arrays)
            passed = [self._argument(i, array) for i, array in enumerate(arrays)]
            try:
                function, constants = self._call
                results = function(*(self._on_device(a) for a in self._arguments), *constants)
            except Exception as error:
                raise InvalidOption(
                    f"the model does not take these inputs: {one_line(error, 300)}"
                ) from None
            finally:
                self._arguments[:] = [None] * len(arrays)
            passed.append(self._weights)
            return {
                name: self._result(i, results[i], passed) for i, name in enumerate(self._outputs)
            }

    def _on_device(self, tensor: Any) -> Any:
        return tensor if self._device is None else tensor.copyto(self._device)

    def _check(self, arrays: Sequence[np.ndarray]) -> None:
        """Checks inputs, and selects the call for their shapes.

        Raises:
            InvalidOption: one that does not.
        """
        if [array.dtype for array in arrays] != self._dtypes:
            for array, (name, type) in zip(arrays, self._inputs, strict=True):
                if array.dtype != type.dtype.numpy:
                    raise _misfit(name, type, array)
        shapes = [array.shape for array in arrays]
        if shapes != self._fitting:
            check_shapes(self._inputs, arrays)
            self._call = self._for_shapes.get(tuple(shapes), self._calls[0])
            self._fitting = shapes

    def _argument(self, place: int, array: np.ndarray) -> np.ndarray:
        """Sets an argument to the array where TVM can read it in place, else to a copy, whose memory is
        reused for the next input of this shape. Returns the array that is passed."""
        array = array if array.dtype.isbuiltin == 1 else as_stored(array)
        if is_ready(array):
            self._arguments[place] = _tensor(array)
            return array
        kept = self._copies[place]
        if kept is None or kept[0].shape != array.shape:
            memory = aligned(array.shape, array.dtype)
            kept = self._copies[place] = (memory, _tensor(memory))
        kept[0][...] = array
        self._arguments[place] = kept[1]
        return kept[0]

    def _result(self, place: int, tensor: Any, passed: Sequence[np.ndarray]) -> np.ndarray:
        """An output as a separate array: TVM may return an argument's memory."""
        if self._copied[place]:
            return np.asarray(tensor.numpy())
        result = np.from_dlpack(tensor).view(self._output_dtypes[place])
        for array in passed:
            if np.may_share_memory(result, array):
                return result.copy()
        return result


def check_shapes(inputs: Interface, arrays: Sequence[np.ndarray]) -> None:
    """Checks ranks, fixed dims and the sizes of named dims.

    Raises:
        InvalidOption: an input that does not fit.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for (name, type), array in zip(inputs, arrays, strict=True):
        if array.ndim != type.rank:
            raise _misfit(name, type, array)
        for dim, size in zip(type.dims or (), array.shape, strict=True):
            if isinstance(dim, int) and dim != size:
                raise _misfit(name, type, array)
            if symbols(dim) != {symbol := str(dim)}:
                continue
            known, other = sizes.setdefault(symbol, (size, name))
            if known != size:
                raise InvalidOption(
                    f"{symbol} is {known} in input {other!r} and {size} in {name!r}"
                )
    bound = {symbol: size for symbol, (size, _) in sizes.items()}
    for (name, type), array in zip(inputs, arrays, strict=True):
        for dim, size in zip(type.dims or (), array.shape, strict=True):
            if dim is not None and symbols(dim) <= bound.keys() and evaluate(dim, bound) != size:
                raise _misfit(name, type, array)


def is_ready(array: np.ndarray) -> bool:
    """Whether TVM can read an array in place."""
    flags = array.flags
    return (
        flags.c_contiguous
        and flags.writeable  # DLPack, by which it is passed, has no read-only arrays.
        and array.ctypes.data % ALIGNMENT == 0
        and array.dtype.kind != "V"
    )


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array, aligned as TVM requires."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _tensor(array: np.ndarray) -> Any:
    """A TVM tensor that shares an array's memory."""
    if not array.size:  # It has no memory that could be aligned.
        return tvm.runtime.empty(array.shape, DTYPES[DType.of(array)])
    if array.dtype.kind != "V":
        return tvm.runtime.from_dlpack(array)
    # numpy's DLPack does not know bfloat16.
    bits = tvm.runtime.from_dlpack(array.view(f"u{array.itemsize}"))
    return bits._create_view(array.shape, DTYPES[DType.of(array)])


def parameters(weights: np.ndarray, described: Sequence[Parameter]) -> list[Any]:
    """The library's parameters as tensors: views of the weights, and arrays derived from those.

    Args:
        weights: uint8, the weights as stored, at an address that is a multiple of 64.
        described: the description's parameters.

    Raises:
        InvalidModel: derived arrays do not have the described types.
    """
    arrays: list[np.ndarray] = []
    for parameter in described:
        type = parameter.type
        if parameter.derived is None:
            data = weights[parameter.offset : parameter.offset + parameter.size]
            arrays.append(data.view(type.dtype.numpy).reshape(type.shape))
            continue
        try:
            sources = [arrays[place] for place in parameter.derived.sources]
            array = compute(parameter.derived.steps, sources)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise InvalidModel(f"a parameter cannot be made: {one_line(error)}") from None
        if DType.of(array) is not type.dtype or array.shape != type.shape:
            raise InvalidModel(f"a parameter is no {type}, as the library tells")
        arrays.append(aligned(array.shape, array.dtype))
        arrays[-1][...] = array
    return [_tensor(array) for array in arrays]


def _weights(model: Built | Path, description: Description) -> np.ndarray:
    """The bytes of the weights: mapped where they are in a file, else a copy in memory.

    Raises:
        InvalidModel: they are missing or too few.
    """
    if description.weights is None:
        return np.empty(0, np.uint8)
    if isinstance(model, Path):
        data = _mapped(model.parent / description.weights)
    elif not isinstance(model, Split):
        raise InvalidModel("its weights are not there")
    elif model.weights.file is not None:
        data = _mapped(model.weights.file)
    else:
        data = _copied(model.weights)
    if len(data) < description.weight_bytes:
        raise InvalidModel(
            f"its weights are cut short: {len(data)} bytes of {description.weight_bytes}"
        )
    return data


def _mapped(file: Path) -> np.ndarray:
    try:
        # Copy-on-write, though nobody writes: DLPack has no read-only memory.
        return np.memmap(file, np.uint8, "c")
    except (OSError, ValueError) as error:
        raise InvalidModel(f"its weights are not there: {one_line(error)}") from None


def _copied(weights: Weights) -> np.ndarray:
    memory = aligned((weights.size,), np.dtype(np.uint8))
    end = 0
    for chunk in weights.chunks():
        memory[end : end + len(chunk)] = chunk
        end += len(chunk)
    return memory


def _misfit(name: str, type: TensorType, array: np.ndarray) -> InvalidOption:
    given = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    return InvalidOption(f"input {name!r} is {given}, and the model takes {type}")


def _other_names(names: Sequence[str], given: Mapping[str, np.ndarray]) -> InvalidOption:
    takes = ", ".join(sorted(names))
    for name in sorted(set(names) - given.keys()):
        return InvalidOption(f"input {name!r} is missing; the model takes {takes}")
    unknown = min(given.keys() - set(names))
    return InvalidOption(f"no input {unknown!r}; the model takes {takes}")
