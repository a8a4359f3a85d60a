"""Unique names."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """Names that are in use, ``taken`` at first."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._numbers: dict[
            str, int
        ] = {}  # The last one for each base: thousands may share a base.

    def unique(self, base: str) -> str:
        """``base``, or the first of ``base_1``, ``base_2`` … that is not in use; it is in use from now on."""
        name, number = base, self._numbers.get(base, 0)
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._numbers[base] = number
        self._taken.add(name)
        return name


def unique(names: Iterable[str]) -> list[str]:
    """``names``, with a number after each that repeats an earlier one."""
    used = Names()
    return [used.unique(name) for name in names]
