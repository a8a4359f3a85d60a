"""Constants as text.

    dense [0.5, 1.0]                                    a small constant: its numbers
    affine(i8[2] [1, -2], scale = f32[] [0.5], zero_point = i8[] [0])
    affine(i8[2] [1, -2], scale = f32[2] [0.5, 1.0], zero_point = i8[2] [0, 1], axis = 0, bits = 3)
    masked(cast(f16[2] [1.0, 0.0], dtype = f32), mask = bool[2] [true, false])
    affine(i4, axis=1) #8d41a5c09ee2f1b3                a large one: description and digest

A form is written as its parts, the first without its name.  An array is written with its type, and stands
for a dense encoding where an encoding is expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tersor.errors import suggest
from tersor.ir.encodings.encoding import FORMS, Encoding, dense
from tersor.ir.tokens import Tokens
from tersor.ir.types import DType, TensorType

INLINE_ELEMENTS = 8  # per array of a constant
MAX_NUMBERS = 1 << 24  # elements of a constant that is generated from text

# -- printing ------------------------------------------------------------------------------------


def print_encoding(encoding: Encoding) -> str:
    """The text of a constant after the ``=``."""
    if not _inlines(encoding):
        return f"{encoding.describe()} #{encoding.digest}"
    return f"dense {_numbers(encoding.decode())}" if encoding.is_dense else _part(encoding)


def print_number(value: object) -> str:
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    number = float(value)  # type: ignore[arg-type]
    if math.isfinite(number):
        return repr(number)
    return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _part(part: Any) -> str:
    if isinstance(part, Encoding) and not part.is_dense:
        (_, first), *named = part.parts().items()
        fields = [_part(first), *(f"{name} = {_part(value)}" for name, value in named)]
        return f"{part.form}({', '.join(fields)})"
    if isinstance(part, (Encoding, np.ndarray)):
        array = part.decode() if isinstance(part, Encoding) else part
        return f"{TensorType(DType.of(array), array.shape)} {_numbers(array)}"
    if isinstance(part, DType):
        return part.value
    if isinstance(part, tuple):
        return f"[{', '.join(map(print_number, part))}]"
    return json.dumps(part) if isinstance(part, str) else print_number(part)


def _numbers(array: np.ndarray) -> str:
    flat = array.reshape(-1).tolist()
    if array.dtype.kind == "V":  # ml_dtypes' items are not Python numbers.
        wide = np.int64 if DType.of(array).is_integer else np.float64
        flat = array.reshape(-1).astype(wide).tolist()
    items = (str(v).lower() if isinstance(v, bool) else print_number(v) for v in flat)
    return f"[{', '.join(items)}]"


def _inlines(part: Any) -> bool:
    if isinstance(part, Encoding):
        few = (
            math.prod(part.type.shape) <= INLINE_ELEMENTS
        )  # First, so that no large one is unpacked.
        return few and all(map(_inlines, part.parts().values()))
    if not isinstance(part, np.ndarray):
        return True
    if part.size > INLINE_ELEMENTS:
        return False
    dtype = DType.of(part)
    if dtype.is_float:
        # A NaN's payload and sign do not survive decimal text.
        return not np.isnan(part.astype(np.float64)).any()
    return dtype.is_integer or dtype is DType.BOOL


# -- parsing -------------------------------------------------------------------------------------


def read_encoding(tokens: Tokens, type: object, weights: Mapping[str, Encoding]) -> Encoding:
    """Reads a constant of that type; a digest is looked up in ``weights``.

    Raises:
        InvalidGraph: a syntax error, another type, or a digest missing from ``weights``.
    """
    if not isinstance(type, TensorType):
        raise tokens.fail(f"a constant cannot be {type}")
    start = tokens.position
    described = tokens.take()
    depth = 0
    while (mark := tokens.peek()[1]) == "(" or depth:
        depth += (mark == "(") - (mark == ")")
        tokens.take()
    kind, digest, _ = tokens.peek()
    if kind == "digest":
        tokens.take()
        if digest[1:] not in weights:
            tokens.fail(f"no weight with digest {digest}")
        if weights[digest[1:]].type != type:
            tokens.fail(f"{digest} is of type {weights[digest[1:]].type}, not {type}")
        return weights[digest[1:]]
    if described == "dense":
        return dense(read_numbers(tokens, type))
    tokens.position = start
    encoding = _read_form(tokens)
    if encoding.type != type:
        tokens.fail(f"{encoding.describe()} here is of type {encoding.type}, not {type}")
    return encoding


def read_numbers(tokens: Tokens, type: TensorType) -> np.ndarray:
    """Reads ``[1, 2]``, ``normal(seed)`` or ``arange`` as an array of that type."""
    shape, dtype = type.shape, type.dtype.numpy
    if not 0 <= math.prod(shape) <= MAX_NUMBERS:
        tokens.fail(f"{type} is too large for numbers in the text")
    if tokens.accept("normal"):
        tokens.take("(")
        seed = int(tokens.take())
        tokens.take(")")
        return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    if tokens.accept("arange"):
        return np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    tokens.take("[")
    read = "true".__eq__ if type.dtype is DType.BOOL else int if type.dtype.is_integer else float
    items: list[object] = []
    while not tokens.accept("]"):
        items.append(read(tokens.take()))
        tokens.accept(",")
    return np.array(items, dtype).reshape(shape)


def _read_form(tokens: Tokens) -> Encoding:
    name = tokens.take()
    if name not in FORMS:
        raise tokens.fail(f"no encoding is called {name!r}{suggest(name, FORMS)}")
    tokens.take("(")
    first: list[Any] = []
    named: dict[str, Any] = {}
    while not tokens.accept(")"):
        if key := _key(tokens):
            named[key] = _read_part(tokens)
        else:
            first.append(_read_part(tokens))
        tokens.accept(",")
    return FORMS[name].of_parts(*first, **named)


def _key(tokens: Tokens) -> str:
    """Reads ``name =`` if it comes next; else the empty string."""
    kind, _, _ = tokens.peek()
    start = tokens.position
    if kind == "word":
        name = tokens.take()
        if tokens.accept("="):
            return name
        tokens.position = start
    return ""


def _read_part(tokens: Tokens) -> Any:
    kind, text, end = tokens.peek()
    if kind == "word" and tokens.text[end : end + 1] == "[":
        type = tokens.type()
        if not isinstance(type, TensorType):
            raise tokens.fail(f"an array cannot be {type}")
        return read_numbers(tokens, type)
    if kind == "word" and tokens.text[end : end + 1] == "(":
        return _read_form(tokens)
    tokens.take()
    if kind == "string":
        return str(json.loads(text))
    if kind == "number":
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    if text == "[":
        items = []
        while not tokens.accept("]"):
            items.append(int(tokens.take()))
            tokens.accept(",")
        return tuple(items)
    return DType(text)
