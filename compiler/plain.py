"""Plain data (what JSON holds) as objects of dataclasses: every field is there, known and of its type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

# As ``__pydantic_config__`` of a dataclass: keys that it has not are refused, and nothing is converted.
EXACT = ConfigDict(extra="forbid", strict=True)
T = TypeVar("T")


def read_plain(kind: type[T], data: Mapping[str, object]) -> T:
    """An object of ``kind`` with the fields in ``data``.

    Raises:
        ValueError: a field is missing, unknown, or of another type; says which.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{place or kind.__name__}: {problem['msg']}") from None
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
