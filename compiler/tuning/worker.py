"""One system under measurement, in a process of its own: ``python -m tersor.tuning.worker``.

Thread pools of several sessions in one process wait in loops against each other, so each gets its
own, and is commanded over its pipe, a line at a time:

    time I        one untimed run of feed I, then one timed: answers its milliseconds
    run I PATH    writes the outputs of feed I to PATH (.npz): answers ok
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tersor import registry
from tersor.errors import TersorError
from tersor.tuning.arrays import read_arrays, write_arrays


def main(arguments: list[str]) -> int:
    """``RUNTIME MODEL CHOICE FEED...``: a runtime's name, a model file, its choice as JSON, .npz files."""
    runtime, *rest = arguments
    return serve(registry.backend(runtime), *rest)


def serve(backend: Any, model: str, choice: str, *paths: str) -> int:
    """Obeys stdin until it ends. ``backend`` has ``open_session`` and ``run``."""
    feeds = [read_arrays(Path(path)) for path in paths]
    try:
        session = backend.open_session(Path(model), json.loads(choice))
    except TersorError as error:
        print(f"error {error}", flush=True)
        return 1
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print(_obey(backend, session, feeds, line.split()), flush=True)
        except TersorError as error:
            print(f"error {error}", flush=True)
    return 0


def _obey(backend: Any, session: Any, feeds: list[dict[str, np.ndarray]], words: list[str]) -> str:
    feed = feeds[int(words[1])]
    outputs = backend.run(session, feed)
    if words[0] == "run":
        write_arrays(Path(words[2]), outputs)
        return "ok"
    start = time.perf_counter()
    backend.run(session, feed)
    return repr((time.perf_counter() - start) * 1e3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
