"""Plain data (JSON) to dataclass instances: every field must be present, known and of its type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

# For a dataclass's ``__pydantic_config__``: unknown keys are refused, and no value is converted.
EXACT = ConfigDict(extra="forbid", strict=True)
T = TypeVar("T")


def read_plain(kind: type[T], data: Mapping[str, object]) -> T:
    """An instance of ``kind`` with the fields in ``data``.

    Raises:
        ValueError: names the field that is missing, unknown, or of another type.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{place or kind.__name__}: {problem['msg']}") from None
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
