"""One system under measurement, in a process of its own: ``python -m tersor.tuning.worker``.

Spinning thread pools of several sessions in one process disturb each other, so each gets its own process.
Commands arrive on stdin, one per line:

    open J    loads a model in place of the previous one; J is its path and choice in JSON. Answer: ready
    time I    one untimed run of feed I, then a timed one. Answer: its milliseconds. Long runs need no
              warm-up and are timed at once
    run I     writes the outputs of feed I into the folder. Answer: ok
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tersor.backend import Session
from tersor.errors import TersorError
from tersor.pipeline import registry
from tersor.tuning.arrays import OUTPUTS, feed_path, read_arrays, write_arrays

LONG = 30.0  # Milliseconds.
_PR_SET_PDEATHSIG = 1  # Linux: prctl.


def main(arguments: list[str]) -> int:
    """``RUNTIME FOLDER``: the runtime, the folder of feeds."""
    runtime, folder = arguments
    _end_with_parent()
    # TVM imports torch if installed, which takes seconds; a worker only uses numpy arrays.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    return serve(registry.backend(runtime).open_session, folder)


def _end_with_parent() -> None:
    """Ends this process with its parent, even while it is stopped and cannot see that its pipe is closed.
    Other systems than Linux end stopped processes at the end of their session."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(open_session: Callable[[Path, Mapping[str, object]], Session], folder: str) -> int:
    """Executes commands from stdin until it is closed."""
    system: _System | None = None
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        try:
            if command == "open":
                system = None  # Frees its memory and threads before the next model is loaded.
                model, choice = json.loads(argument)
                system = _System(open_session(Path(model), choice), Path(folder))
                answer = "ready"
            else:
                assert system is not None
                run = system.run if command == "run" else system.time
                answer = run(int(argument))
            print(answer, flush=True)
        except TersorError as error:
            print(f"error {error}", flush=True)
    return 0


class _System:
    def __init__(self, session: Session, folder: Path) -> None:
        self._run = session.run
        self._folder = folder
        self._feeds: dict[int, dict[str, np.ndarray]] = {}
        self._took: dict[int, float] = {}

    def run(self, number: int) -> str:
        write_arrays(self._folder / OUTPUTS, self._run(self._feed(number)))
        return "ok"

    def time(self, number: int) -> str:
        feed = self._feed(number)
        if self._took.get(number, 0.0) < LONG:
            self._run(feed)
        start = time.perf_counter()
        self._run(feed)
        self._took[number] = (time.perf_counter() - start) * 1e3
        return repr(self._took[number])

    def _feed(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._feeds:
            self._feeds[number] = read_arrays(feed_path(self._folder, number))
        return self._feeds[number]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
