"""Paired measurements: two systems in separate processes, run alternately on the same inputs.

On a shared machine absolute times mean little, but both runs of a pair see the same load: results are the
median of the pairwise ratios, with quartiles.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.built import Built
from tersor.errors import InvalidModel
from tersor.pipeline.report import Timing
from tersor.tuning.arrays import OUTPUTS, feed_path, read_arrays, write_arrays

# Idle threads of a runtime spin for a while (ONNX Runtime's for over 100 ms) and slow down the next run by a
# third, so a worker is stopped (SIGSTOP) between runs. Without that signal, sleep this many seconds instead.
PAUSE = 0.1
_CAN_STOP = hasattr(signal, "SIGSTOP")
NOT_SLOWER = 0.98  # Two runs of the same model can differ by this speedup.
LEAST_PAIRS = 5  # Quartiles of fewer are meaningless.
SECONDS = 4.0  # Limit of a comparison, after the least pairs.
WORKER = ("-m", "tersor.tuning.worker")
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Paired:
    """Comparison of two systems on one input: ``speedup`` of b over a is the median of the pairwise
    ratios a / b, ``low`` and ``high`` their quartiles; ``a_ms``, ``b_ms`` are medians."""

    a_ms: float
    b_ms: float
    speedup: float
    low: float
    high: float
    pairs: int

    @staticmethod
    def of(a: Sequence[float], b: Sequence[float]) -> Paired:
        """From the milliseconds of both, pair by pair."""
        low, middle, high = np.percentile(np.divide(a, b), (25, 50, 75))
        return Paired(
            float(np.median(a)), float(np.median(b)), float(middle), float(low), float(high), len(a)
        )

    @property
    def slower(self) -> bool:
        """Whether b counts as slower: by at least 1% in three quarters of the pairs, or by more than 2% in
        the median."""
        return self.high < 0.99 or self.speedup < NOT_SLOWER

    def differs_from(self, speedup: float) -> bool:
        """Whether the result differs from ``speedup`` by more than three standard errors."""
        return abs(self.speedup - speedup) > 3 * self.error

    @property
    def error(self) -> float:
        """The standard error of ``speedup``: for normal scatter, 0.93 interquartile ranges over the square
        root of the number of pairs."""
        return 0.93 * (self.high - self.low) / math.sqrt(self.pairs)

    @property
    def timing(self) -> Timing:
        """For reports: rounded."""
        speedup, low, high = (round(s, 4) for s in (self.speedup, self.low, self.high))
        return Timing(round(self.a_ms, 3), round(self.b_ms, 3), speedup, low, high, self.pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain data, rounded."""
        return asdict(self.timing)

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Paired:
        """Reads the output of :meth:`to_json`; KeyError, TypeError or ValueError if it is something else."""
        names = ("before_ms", "after_ms", "speedup", "speedup_q1", "speedup_q3")
        a, b, speedup, low, high = (float(row[name]) for name in names)
        return Paired(a, b, speedup, low, high, int(row["pairs"]))


class Bench:
    """A folder of feeds, and the worker processes that read them."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tersor-")
        self.folder = Path(self._folder.name)
        self._workers: list[Worker] = []
        self._spare: dict[tuple[str, ...], Worker] = {}
        self._feeds = self._models = 0
        for feed in feeds:
            self.add(feed)

    def add(self, feed: Feed) -> int:
        """Adds a feed, also for running workers; returns its number."""
        write_arrays(feed_path(self.folder, self._feeds), feed)
        self._feeds += 1
        return self._feeds - 1

    def prepare(self, runtime: str, program: Sequence[str] = WORKER) -> None:
        """Starts a process that loads the runtime in the background; the next :meth:`start` uses it."""
        command = (*program, runtime)
        if command not in self._spare:
            self._spare[command] = Worker(command, self.folder)
            self._workers.append(self._spare[command])

    def start(
        self,
        runtime: str,
        model: Built | Path,
        choice: Mapping[str, object],
        program: Sequence[str] = WORKER,
    ) -> Worker:
        """A worker for a model. ``program``: Python arguments of the worker program.

        Raises:
            InvalidModel: the runtime rejects the model.
        """
        self.prepare(runtime, program)
        worker = self._spare.pop((*program, runtime))
        try:
            worker.open(self._placed(model), choice)
        except InvalidModel:
            self.release(worker)
            raise
        return worker

    def release(self, worker: Worker) -> None:
        """Returns a worker's process, which has loaded the runtime, for reuse by the next :meth:`start`."""
        if worker.is_alive and worker.program not in self._spare:
            self._spare[worker.program] = worker
        else:
            worker.stop()

    def _placed(self, model: Built | Path) -> Path:
        """The path of a model's file, written if needed."""
        if isinstance(model, Path):
            return model.resolve()
        name = f"model-{self._models}.bin"
        self._models += 1
        if not isinstance(model, bytes):
            return model.place(self.folder, name)
        path = self.folder / name
        path.write_bytes(model)
        return path

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()


class Trial:
    """Tries inputs on one model in a separate process. A context manager; calling it with a feed raises
    InvalidModel if the model fails or crashes on it."""

    def __init__(self, runtime: str, model: Built | Path, choice: Mapping[str, object]) -> None:
        self._bench = Bench()
        self._model = (runtime, model, choice)
        self._worker: Worker | None = None

    def __call__(self, feed: Feed) -> None:
        if self._worker is None or not self._worker.is_alive:
            self._worker = self._bench.start(*self._model)
        self._worker.outputs(self._bench.add(feed))

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.__exit__()


class Worker:
    """A process that runs one model; created by :meth:`Bench.start`.

    Attributes:
        program: arguments that Python was started with.
        model: its file, once open.
    """

    def __init__(self, program: Sequence[str], folder: Path) -> None:
        pipe = subprocess.PIPE
        # A process group of its own keeps Ctrl-C from reaching it.
        self._process = subprocess.Popen(
            [sys.executable, *program, str(folder)],
            stdin=pipe,
            stdout=pipe,
            text=True,
            process_group=0,
        )
        self._folder = folder
        self.program = tuple(program)
        self.model: Path | None = None

    def open(self, model: Path, choice: Mapping[str, object]) -> None:
        """Loads a model.

        Raises:
            InvalidModel: the runtime rejects it.
        """
        self.model = model
        self._ask(f"open {json.dumps([str(model), dict(choice)])}")

    def milliseconds(self, feed: int) -> float:
        """One timed run of a feed, after an untimed one."""
        return float(self._ask(f"time {feed}"))

    def outputs(self, feed: int) -> dict[str, np.ndarray]:
        """The outputs of a feed, by name."""
        self._ask(f"run {feed}")
        return read_arrays(self._folder / OUTPUTS)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        if _CAN_STOP:
            self._process.send_signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):  # The missing answer is handled below.
                print(command, file=self._process.stdin, flush=True)
            return self._answer()
        finally:
            self._suspend()

    def _suspend(self) -> None:
        """Keeps its threads from running until the next command."""
        if _CAN_STOP:
            self._process.send_signal(signal.SIGSTOP)
        else:
            time.sleep(PAUSE)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line.startswith("error "):
            raise InvalidModel(line.removeprefix("error "))
        if not line:
            code = self._process.wait()
            raise InvalidModel(f"the worker process ended with code {code}")
        return line


class Comparison:
    """Interleaved runs of two systems on one feed."""

    def __init__(self, a: Worker, b: Worker, feed: int) -> None:
        self._a, self._b, self._feed = a, b, feed
        self._times: list[tuple[float, float]] = []

    def add(self) -> None:
        """Runs one more pair. The order alternates, so that neither side profits from it."""
        if self.pairs % 2 == 0:
            first, second = self._a.milliseconds(self._feed), self._b.milliseconds(self._feed)
        else:
            second, first = self._b.milliseconds(self._feed), self._a.milliseconds(self._feed)
        self._times.append((first, second))

    @property
    def pairs(self) -> int:
        """Number of pairs so far."""
        return len(self._times)

    @property
    def result(self) -> Paired:
        """The result of the pairs so far; at least one must have run."""
        return Paired.of(*zip(*self._times, strict=True))


def compare(
    a: Worker,
    b: Worker,
    feed: int,
    pairs: int,
    settled: Callable[[Paired], bool] = lambda so_far: False,
) -> Paired:
    """Compares both on one feed in at most ``pairs`` pairs, until the result is ``settled`` or SECONDS have
    passed."""
    comparison = Comparison(a, b, feed)
    end = time.monotonic() + SECONDS
    for _ in range(pairs):
        comparison.add()
        if comparison.pairs < LEAST_PAIRS:
            continue
        if time.monotonic() > end or settled(comparison.result):
            break
    return comparison.result
