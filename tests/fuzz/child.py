"""One fuzzing process: atheris on one target. ``run.py`` starts it, and starts it again if it dies.

    python tests/fuzz/child.py TARGET FINDINGS [libFuzzer's options and corpora]

What a target raises is written to FINDINGS under the key of where it was raised, the shortest input of
each; fuzzing goes on. A crash, a time out or too much memory end the process: libFuzzer leaves the
input of those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

LONGEST = 30_000  # bytes of an input

with atheris.instrument_imports(include=["tersor"]):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from fuzz import mutate, replay, targets


def main() -> None:
    target, findings, *options = sys.argv[1:]
    folders = [Path(o) for o in options if not o.startswith("-")]
    found: dict[str, int] = {}

    def one(data: bytes) -> None:
        key = targets.run(target, data)
        if key and len(data) < found.get(key, LONGEST + 1):
            found[key] = len(data)
            Path(findings, key).write_bytes(data)
            print(f"FINDING {key} {len(data)} bytes", file=sys.stderr, flush=True)

    kept = [p.read_bytes() for folder in folders for p in sorted(folder.iterdir())]
    donors = mutate.models(kept) if target == "onnx" else []

    def changed(data: bytes, size: int, seed: int) -> bytes:
        return mutate.mutated(data, size, seed, atheris.Mutate, donors)

    own = {"custom_mutator": changed} if target == "onnx" else {}
    # What is loaded on first use is no input's doing: the limit is set after warming up.
    for data in kept[:20]:
        targets.run(target, data)
    replay.limit_memory()
    atheris.Setup([sys.argv[0], f"-max_len={LONGEST}", *options], one, **own)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
