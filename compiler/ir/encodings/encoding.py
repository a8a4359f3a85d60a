"""The interface of encodings, and the registry of forms.

A form is a frozen dataclass in a file of its own.  Its fields are arrays, inner encodings and plain
parameters; digest, text and the arrays to save or to train are derived from them.  An operation that a
form does not define (``take``, ``permute``, ``scaled`` …) decodes and returns a dense constant.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tersor.built import pieces
from tersor.ir.types import DType, TensorType

FORMS: dict[str, type[Encoding]] = {}
"""Every form by its name in the text form."""

E = TypeVar("E", bound="Encoding")
Form = type[E]  # Inside an encoding, ``type`` is that of its tensor.


def register(form: type[E]) -> type[E]:
    """Class decorator: adds a form to ``FORMS``.

    Raises:
        ValueError: another form has that name.
    """
    if FORMS.setdefault(form.form, form) is not form:
        raise ValueError(f"two encodings are called {form.form}")
    return form


def dense(array: np.ndarray) -> Encoding:
    """``array`` as a ``Dense`` encoding, which this file cannot import."""
    return FORMS["dense"](array)  # type: ignore[call-arg]


class Encoding(ABC):
    """A constant's numbers in some form. Immutable; shared between graph copies."""

    form: ClassVar[str]

    # -- meaning -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """Type of the decoded tensor."""

    @abstractmethod
    def decode(self) -> np.ndarray:
        """The numbers, with the dtype and shape of ``type``."""

    @property
    def is_dense(self) -> bool:
        """Whether it is a plain array, which ``decode`` returns without copying."""
        return False

    def layer(self, form: Form[E]) -> E | None:
        """This encoding, or the one under its mask, if it has that form; else None."""
        return self if isinstance(self, form) else None

    @property
    def mask(self) -> np.ndarray | None:
        """bool, of the tensor's shape: False where an element was pruned, which has to stay zero. None if
        nothing was pruned."""
        return None

    @property
    def unmasked(self) -> Encoding:
        """The same numbers without a mask."""
        return self

    def is_zero(self) -> np.ndarray:
        """bool, of the tensor's shape: which numbers are zero before scaling."""
        return np.asarray(self.decode() == np.zeros((), self.type.dtype.numpy))

    # -- storage -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def storage(self) -> DType:
        """Element type of the stored numbers: the integers' if quantized."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits stored per element, without shared data (scales, tables)."""

    @abstractmethod
    def stored_bytes(self, elements: int) -> int:
        """Its size if only so many of its elements are stored, including scales and the like."""

    @property
    def nbytes(self) -> int:
        """Its size, including scales and the like."""
        return self.stored_bytes(math.prod(self.type.shape))

    @property
    @abstractmethod
    def place(self) -> tuple[object, ...]:
        """Identifies its memory, whatever the order of the axes: an embedding table and its transpose in a
        tied head are stored once."""

    @property
    @abstractmethod
    def memory_order(self) -> tuple[int, ...]:
        """The axes in memory order, the one with the largest stride first."""

    # -- the same form with other numbers ----------------------------------------------------------

    def take(self, positions: np.ndarray, axis: int) -> Encoding:
        """These positions of an axis, in the same form if possible, else dense."""
        return dense(np.take(self.decode(), positions, axis))

    def permute(self, perm: Sequence[int]) -> Encoding:
        """The axes in the order ``perm``, in the same form if possible, without copying large arrays."""
        return dense(self.decode().transpose(perm))

    def reshape(self, shape: Sequence[int]) -> Encoding | None:
        """The same numbers, in order, in another shape and the same form; None if that is impossible."""
        return None

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        """The numbers times ``factor``: a scalar, or one factor per position of ``axis``. In the same form
        if possible, else dense; the type stays."""
        by = factor.reshape(along(self.type.shape, axis))
        return dense((self.decode() * by).astype(self.type.dtype.numpy))

    def zeroed(self, mask: np.ndarray) -> Encoding:
        """The numbers where ``mask`` is set, zero elsewhere, in the same form or dense."""
        return dense(np.where(mask, self.decode(), np.zeros((), self.type.dtype.numpy)))

    def with_values(self, values: Encoding) -> Encoding:
        """``values``, of this shape, stored the same way: masked elements stay zero, and half-precision
        storage stays half precision."""
        return values

    def concat_key(self, axis: int) -> tuple[object, ...] | None:
        """Equal for encodings that ``joined`` can concatenate along ``axis``; None if it cannot."""
        return None

    def joined(self, others: Sequence[Encoding], axis: int) -> Encoding:
        """The concatenation of this and ``others``, of equal ``concat_key``, along ``axis``."""
        raise NotImplementedError

    # -- derived from the fields -------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """Arrays, inner encodings and non-default parameters by name."""
        given = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, (v, default) in given.items() if default is MISSING or v != default}

    @classmethod
    def of_parts(cls, *first: Any, **parts: Any) -> Self:
        """The inverse of :meth:`parts`.

        Raises:
            TypeError, ValueError, AttributeError: not the parts of this form.
        """
        return cls(*first, **parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """All its arrays by dotted name: what is saved to files and can be trained."""
        return dict(_arrays(self, ""))

    def rebuild(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The same form and parameters with other arrays, named as in ``arrays()``."""
        return _rebuilt(self, "", arrays)

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of a SHA-256 over the encoded form: equal for equal contents."""
        return _digest(self)

    @property
    def element(self) -> str:
        """Its element type (``i8``) if that describes it, else :meth:`describe`."""
        return self.describe()

    @abstractmethod
    def describe(self) -> str:
        """A short description: ``dense``, ``affine(i8, axis=1)``."""

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        """Encodings of this form over ``inner`` or its numbers, for the tests of all forms; none if the form
        cannot store such numbers."""
        return iter(())


class Layer(Encoding):
    """An encoding over another one of the same shape, its first field."""

    @property
    def inner(self) -> Encoding:
        first, *_ = fields(self)  # type: ignore[arg-type]
        inner: Encoding = getattr(self, first.name)
        return inner

    @property
    def type(self) -> TensorType:
        return self.inner.type

    @property
    def storage(self) -> DType:
        return self.inner.storage

    @property
    def bits(self) -> int:
        return self.inner.bits

    def stored_bytes(self, elements: int) -> int:
        _, *others = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        shared = sum(part.nbytes for part in others if isinstance(part, (np.ndarray, Encoding)))
        return self.inner.stored_bytes(elements) + shared

    @property
    def place(self) -> tuple[object, ...]:
        return self.inner.place

    @property
    def memory_order(self) -> tuple[int, ...]:
        return self.inner.memory_order

    @classmethod
    def of_parts(cls, *first: Any, **parts: Any) -> Self:
        values, *others = first
        return super().of_parts(as_encoding(values), *others, **parts)

    def describe(self) -> str:
        return f"{self.form}({self.inner.element})"

    def over(self, inner: Encoding, **parts: Any) -> Self:
        """The same form and parameters over another encoding."""
        first, *_ = fields(self)  # type: ignore[arg-type]
        return replace(self, **{first.name: inner}, **parts)  # type: ignore[type-var]


def as_encoding(values: np.ndarray | Encoding) -> Encoding:
    """An array as a dense encoding; an encoding unchanged."""
    return values if isinstance(values, Encoding) else dense(values)


def along(shape: Sequence[int], axis: int | None) -> list[int]:
    """The shape in which a vector along ``axis`` (a scalar for None) broadcasts against ``shape``."""
    return [-1 if i == axis else 1 for i in range(len(shape))]


def place_of(array: np.ndarray) -> tuple[object, ...]:
    """The range of memory that an array fills; for an array with gaps, its identity."""
    low, high = byte_bounds(array)
    return (low, high) if high - low == array.nbytes else (id(array),)


def in_order_of_bytes(array: np.ndarray) -> np.ndarray:
    """``array``, its numbers little-endian as everywhere here; a copy only of one that is not."""
    return np.asarray(array, DType.of(array).numpy)


def packed_bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _arrays(encoding: Encoding, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, part in fields_of(encoding):
        if isinstance(part, np.ndarray):
            yield prefix + name, part
        elif isinstance(part, Encoding):
            yield from _arrays(part, f"{prefix}{name}.")


def _rebuilt(encoding: E, prefix: str, arrays: Mapping[str, np.ndarray]) -> E:
    changed: dict[str, Any] = {}
    for name, part in fields_of(encoding):
        if isinstance(part, np.ndarray):
            changed[name] = arrays[prefix + name]
        elif isinstance(part, Encoding):
            changed[name] = _rebuilt(part, f"{prefix}{name}.", arrays)
    return replace(encoding, **changed)  # type: ignore[type-var]


def fields_of(encoding: Encoding) -> list[tuple[str, Any]]:
    """All there is to an encoding, by name: its class takes just these, too."""
    return [(f.name, getattr(encoding, f.name)) for f in fields(encoding)]  # type: ignore[arg-type]


def _digest(encoding: Encoding) -> str:
    sha = hashlib.sha256(encoding.form.encode())
    for name, part in encoding.parts().items():
        if isinstance(part, Encoding):
            sha.update(part.digest.encode())
        elif isinstance(part, np.ndarray):
            _hash_array(sha, part)
        else:
            sha.update(f"{name}={part}".encode())
    return sha.hexdigest()[:16]


def _hash_array(sha: Any, array: np.ndarray) -> None:
    sha.update(f"{DType.of(array).value}{array.shape}".encode())
    if DType.of(array) is DType.STRING:
        sha.update(repr(array.tolist()).encode())
    else:
        for piece in pieces(in_order_of_bytes(array)):
            sha.update(piece)
