"""One system under measurement, in a process of its own: ``python -m tersor.tuning.worker``.

Thread pools of several sessions in one process wait in loops against each other, so each gets its
own, and is commanded over its pipe, a line at a time:

    time I    one untimed run of feed I, then one timed: answers its milliseconds
    run I     writes the outputs of feed I into the folder: answers ok
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tersor import registry
from tersor.errors import TersorError
from tersor.tuning.arrays import OUTPUTS, feed_path, read_arrays, write_arrays


def main(arguments: list[str]) -> int:
    """``RUNTIME MODEL CHOICE FOLDER``: a runtime, a model file, its choice as JSON, where feeds lie."""
    runtime, *rest = arguments
    return serve(registry.backend(runtime), *rest)


def serve(backend: Any, model: str, choice: str, folder: str) -> int:
    """Obeys stdin until it ends. ``backend`` has ``open_session`` and ``run``."""
    try:
        session = backend.open_session(Path(model), json.loads(choice))
    except TersorError as error:
        print(f"error {error}", flush=True)
        return 1
    print("ready", flush=True)
    feeds = functools.cache(lambda i: read_arrays(feed_path(Path(folder), i)))
    for line in sys.stdin:
        command, number = line.split()
        try:
            print(_obey(backend, session, command, feeds(int(number)), Path(folder)), flush=True)
        except TersorError as error:
            print(f"error {error}", flush=True)
    return 0


def _obey(
    backend: Any, session: Any, command: str, feed: dict[str, np.ndarray], folder: Path
) -> str:
    outputs = backend.run(session, feed)
    if command == "run":
        write_arrays(folder / OUTPUTS, outputs)
        return "ok"
    start = time.perf_counter()
    backend.run(session, feed)
    return repr((time.perf_counter() - start) * 1e3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
