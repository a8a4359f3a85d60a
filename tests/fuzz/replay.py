"""Gives inputs that are kept to their targets, without a fuzzer.

    python tests/fuzz/replay.py FOLDER...        # each is named like a target

Prints a line for each finding and exits with 1 where there is one. Memory is limited, and time.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzz import targets

MEMORY = 1 << 30  # bytes beyond what the process begins with
SLOW = 30  # seconds for one input that are a hang


class Hang(Exception):
    """An input took too long."""


def _hang(*_: object) -> None:
    raise Hang


def limit_memory() -> None:
    """From here on, no more than MEMORY bytes are mapped; asking for more is a MemoryError."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def main(folders: list[Path]) -> int:
    files = [(f.name, p) for f in folders for p in sorted(f.iterdir())]
    signal.signal(signal.SIGALRM, _hang)
    limit_memory()
    found = 0
    for target, path in files:
        signal.alarm(SLOW)
        key = targets.run(target, path.read_bytes())
        signal.alarm(0)
        if key:
            found += 1
            print(f"{target}/{path.name}: {key}")
    print(f"{len(files)} inputs, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main([Path(a) for a in sys.argv[1:]]))
