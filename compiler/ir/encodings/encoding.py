"""What every form of a constant answers, and the registry of forms.

A form is a frozen dataclass in a file of its own.  Its fields say all there is to it: arrays, encodings
inside it, and plain parameters.  Digest, text and the arrays to save or to train follow from them; what
a form does not define for itself (``take``, ``permute``, ``scaled`` …) is computed on the decoded
numbers and gives a dense constant.
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

from tersor.ir.types import DType, TensorType

FORMS: dict[str, type[Encoding]] = {}
"""Every form by the name that the text has for it."""

E = TypeVar("E", bound="Encoding")
Form = type[E]  # Inside an encoding, ``type`` is that of its tensor.


def register(form: type[E]) -> type[E]:
    """Adds a form to ``FORMS``: a decorator.

    Raises:
        ValueError: there is another one of that name.
    """
    if FORMS.setdefault(form.form, form) is not form:
        raise ValueError(f"two encodings are called {form.form}")
    return form


def dense(array: np.ndarray) -> Encoding:
    """``array`` as it is."""
    return FORMS["dense"](array)  # type: ignore[call-arg]


class Encoding(ABC):
    """A constant's numbers in some form. Immutable; shared between graph copies."""

    form: ClassVar[str]

    # -- what it means -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """Type of the decoded tensor."""

    @abstractmethod
    def decode(self) -> np.ndarray:
        """The numbers, of dtype and shape ``type``."""

    @property
    def is_dense(self) -> bool:
        """Whether it is an array as it is, which ``decode`` returns without copying."""
        return False

    def layer(self, form: Form[E]) -> E | None:
        """The encoding of that form which has these numbers: this one, or the one under its mask."""
        return self if isinstance(self, form) else None

    @property
    def mask(self) -> np.ndarray | None:
        """bool, of the tensor's shape: what was not pruned; all else is zero and is to stay zero. None
        where nothing was pruned."""
        return None

    @property
    def unmasked(self) -> Encoding:
        """The same numbers, without a mask that says which of them are to stay zero."""
        return self

    def is_zero(self) -> np.ndarray:
        """bool, of the tensor's shape: which numbers are zero, whatever they are scaled by."""
        return np.asarray(self.decode() == np.zeros((), self.type.dtype.numpy))

    # -- how it is stored --------------------------------------------------------------------------

    @property
    @abstractmethod
    def storage(self) -> DType:
        """Element type of what is stored: of quantized numbers, that of the integers."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits that are stored for each element, without what elements share (scales, tables)."""

    @abstractmethod
    def stored_bytes(self, elements: int) -> int:
        """Bytes it takes with so many of its elements stored, scales and the like included."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes, scales and the like included."""
        return self.stored_bytes(math.prod(self.type.shape))

    @property
    @abstractmethod
    def place(self) -> tuple[object, ...]:
        """Equal for encodings that share memory, whatever the order of their axes: a table, and its
        transpose for a tied head, are stored once."""

    @property
    @abstractmethod
    def memory_order(self) -> tuple[int, ...]:
        """The axes as the elements lie in memory, the one with the longest stride first."""

    # -- the same form with other numbers ----------------------------------------------------------

    def take(self, positions: np.ndarray, axis: int) -> Encoding:
        """These positions of an axis, in the same form where that has one for them, else dense."""
        return dense(np.take(self.decode(), positions, axis))

    def permute(self, perm: Sequence[int]) -> Encoding:
        """The axes in the order ``perm``, in the same form where it can be; what is large is not copied."""
        return dense(self.decode().transpose(perm))

    def reshape(self, shape: Sequence[int]) -> Encoding | None:
        """The same numbers, in order, in another shape and the same form; None where that has none."""
        return None

    def scaled(self, factor: np.ndarray, axis: int | None) -> Encoding:
        """The numbers times ``factor``: one, or one for each position on ``axis``. In the same form
        where it allows that, else dense; the type stays."""
        by = factor.reshape(along(self.type.shape, axis))
        return dense((self.decode() * by).astype(self.type.dtype.numpy))

    def zeroed(self, mask: np.ndarray) -> Encoding:
        """The numbers where ``mask`` is set and zero elsewhere, in the same form or dense."""
        return dense(np.where(mask, self.decode(), np.zeros((), self.type.dtype.numpy)))

    def with_values(self, values: Encoding) -> Encoding:
        """``values``, of this shape, in place of the numbers: what a mask left out stays zero, and numbers
        that were stored in half precision are again."""
        return values

    def concat_key(self, axis: int) -> tuple[object, ...] | None:
        """Equal for encodings that ``joined`` puts together along ``axis``; None where it cannot."""
        return None

    def joined(self, others: Sequence[Encoding], axis: int) -> Encoding:
        """This and ``others``, of equal ``concat_key``, one after the other along ``axis``."""
        raise NotImplementedError

    # -- what its fields say -----------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """Arrays, inner encodings and parameters by their names; parameters only where they are not
        their defaults."""
        given = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, (v, default) in given.items() if default is MISSING or v != default}

    @classmethod
    def of_parts(cls, *first: Any, **parts: Any) -> Self:
        """An encoding of what ``parts`` gave.

        Raises:
            TypeError, ValueError, AttributeError: it cannot be of these.
        """
        return cls(*first, **parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays it consists of, by dotted names: what a file has to hold, and what can be trained."""
        return dict(_arrays(self, ""))

    def rebuild(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The same form and parameters over other arrays, by the names that ``arrays()`` gives them."""
        return _rebuilt(self, "", arrays)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 (first 16 digits) over the encoded form; equal contents, equal digests."""
        return _digest(self)

    @property
    def element(self) -> str:
        """Its element type, where that is all there is to say: ``i8``; else as :meth:`describe`."""
        return self.describe()

    @abstractmethod
    def describe(self) -> str:
        """The encoding in a few words: ``dense``, ``affine(i8, axis=1)``."""

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        """Some encodings of this form over ``inner``, or of its numbers, for the tests that every form
        has to pass; none where such numbers have no such form."""
        return iter(())


class Layer(Encoding):
    """An encoding over another one, which is its first field and has as many elements, in this shape."""

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
        """The same form over another encoding."""
        first, *_ = fields(self)  # type: ignore[arg-type]
        return replace(self, **{first.name: inner}, **parts)  # type: ignore[type-var]


def as_encoding(values: np.ndarray | Encoding) -> Encoding:
    """An array as a dense encoding, an encoding as it is."""
    return values if isinstance(values, Encoding) else dense(values)


def along(shape: Sequence[int], axis: int | None) -> list[int]:
    """The shape of a vector along ``axis``, or of one number, that broadcasts against ``shape``."""
    return [-1 if i == axis else 1 for i in range(len(shape))]


def place_of(array: np.ndarray) -> tuple[object, ...]:
    """The stretch of memory that an array fills; of one that leaves gaps in it, the array itself."""
    low, high = byte_bounds(array)
    return (low, high) if high - low == array.nbytes else (id(array),)


def packed_bytes(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _arrays(encoding: Encoding, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, part in _fields(encoding):
        if isinstance(part, np.ndarray):
            yield prefix + name, part
        elif isinstance(part, Encoding):
            yield from _arrays(part, f"{prefix}{name}.")


def _rebuilt(encoding: E, prefix: str, arrays: Mapping[str, np.ndarray]) -> E:
    changed: dict[str, Any] = {}
    for name, part in _fields(encoding):
        if isinstance(part, np.ndarray):
            changed[name] = arrays[prefix + name]
        elif isinstance(part, Encoding):
            changed[name] = _rebuilt(part, f"{prefix}{name}.", arrays)
    return replace(encoding, **changed)  # type: ignore[type-var]


def _fields(encoding: Encoding) -> list[tuple[str, Any]]:
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
    if array.dtype.hasobject:
        sha.update(repr(array.tolist()).encode())
    else:
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
