"""Keeps the fewest and smallest inputs that together run all lines that all of them run.

python tests/fuzz/minimize.py TARGET TO FROM...
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzz import targets

Step = tuple[str, int, int]  # file, a line, the next one


def steps(target: str, data: bytes) -> set[Step]:
    """What of our code an input runs, as pairs of lines."""
    seen: set[Step] = set()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if "tersor" not in frame.f_globals.get("__name__", ""):
            return None
        file, last = frame.f_code.co_filename, 0

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == "line":
                seen.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        targets.run(target, data)
    finally:
        sys.settrace(None)
    return seen


def main(target: str, to: Path, sources: list[Path]) -> None:
    inputs = {p.read_bytes() for folder in sources for p in folder.iterdir()}
    ordered = sorted(inputs, key=lambda d: (len(d), d))
    for data in ordered:  # What runs once for all is nobody's.
        targets.run(target, data)
    covered: set[Step] = set()
    to.mkdir(parents=True, exist_ok=True)
    # The largest first choice would keep few large ones; by size, each has to bring something new.
    for i, data in enumerate(ordered):
        new = steps(target, data) - covered
        if new:
            covered |= new
            (to / f"{i:04}").write_bytes(data)
    print(f"{len(ordered)} inputs, {sum(1 for _ in to.iterdir())} kept, {len(covered)} steps")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(a) for a in sys.argv[3:]])
