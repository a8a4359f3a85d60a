"""Measuring in pairs: two systems in processes of their own, in turn, on the same inputs.

On a shared machine an absolute time means little, but the two runs of a pair meet the same weather:
what is quoted is the median of the ratios of the pairs, with its quartiles.
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
from types import TracebackType
from typing import Any

import numpy as np

from tersor.built import Built
from tersor.errors import InvalidModel
from tersor.pipeline.report import Timing
from tersor.tuning.arrays import OUTPUTS, feed_path, read_arrays, write_arrays

# Idle threads of a system that is not asked anything wait in loops for a while (ONNX Runtime's for over
# 100 ms) and slow down whoever is next by a third: its process is held meanwhile. Where a system knows no
# such signal, we wait so many seconds after each run.
PAUSE = 0.1
_HOLDS = hasattr(signal, "SIGSTOP")
NOT_SLOWER = 0.98  # A speedup that two runs of the same can show.
LEAST_PAIRS = 5  # Quartiles of fewer say nothing.
SECONDS = 4.0  # A comparison takes no longer, unless the least pairs do.
WORKER = ("-m", "tersor.tuning.worker")
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Paired:
    """How two systems compare on one input: ``speedup`` of b over a is the median of the pairwise
    ratios a / b, ``low`` and ``high`` their quartiles; ``a_ms``, ``b_ms`` are medians."""

    a_ms: float
    b_ms: float
    speedup: float
    low: float
    high: float
    pairs: int

    @staticmethod
    def of(a: Sequence[float], b: Sequence[float]) -> Paired:
        """Of the milliseconds of both, pair by pair."""
        low, middle, high = np.percentile(np.divide(a, b), (25, 50, 75))
        return Paired(
            float(np.median(a)), float(np.median(b)), float(middle), float(low), float(high), len(a)
        )

    @property
    def slower(self) -> bool:
        """Whether b may be slower: three quarters of the pairs say so, by 1% and more, or the median says
        so by more than 2%."""
        return self.high < 0.99 or self.speedup < NOT_SLOWER

    def differs_from(self, speedup: float) -> bool:
        """Whether it is plain on which side of ``speedup`` more pairs would end up: by three errors."""
        return abs(self.speedup - speedup) > 3 * self.error

    @property
    def error(self) -> float:
        """The standard error of ``speedup``: of pairs that scatter normally, 0.93 of their quartiles'
        distance over the root of their number."""
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
        """Reads what :meth:`to_json` writes; KeyError, TypeError or ValueError: it is something else."""
        names = ("before_ms", "after_ms", "speedup", "speedup_q1", "speedup_q3")
        a, b, speedup, low, high = (float(row[name]) for name in names)
        return Paired(a, b, speedup, low, high, int(row["pairs"]))


class Bench:
    """A folder with feeds, and the worker processes that were started on them."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tersor-")
        self.folder = Path(self._folder.name)
        self._workers: list[Worker] = []
        self._spare: dict[tuple[str, ...], Worker] = {}
        self._feeds = self._models = 0
        for feed in feeds:
            self.add(feed)

    def add(self, feed: Feed) -> int:
        """The number of one more feed, which workers that run already know too."""
        write_arrays(feed_path(self.folder, self._feeds), feed)
        self._feeds += 1
        return self._feeds - 1

    def prepare(self, runtime: str, program: Sequence[str] = WORKER) -> None:
        """Lets a process load the runtime while we do something else; the next :meth:`start` has it."""
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
        """A worker for a model. ``program``: what Python runs that knows the runtime.

        Raises:
            InvalidModel: the runtime refuses the model.
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
        """Lets the next :meth:`start` have its process, which has loaded the runtime."""
        if worker.is_alive and worker.program not in self._spare:
            self._spare[worker.program] = worker
        else:
            worker.stop()

    def _placed(self, model: Built | Path) -> Path:
        """Where a model's file lies."""
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()


class Trial:
    """Tries inputs on one model in a process of its own, as a context: called with a feed, it raises
    InvalidModel where the model does not run on it, or does not live through it."""

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bench.__exit__(kind, error, trace)


class Worker:
    """A process that runs one model; made by :meth:`Bench.start`.

    Attributes:
        program: what Python runs.
        model: its file, once it is open.
    """

    def __init__(self, program: Sequence[str], folder: Path) -> None:
        pipe = subprocess.PIPE
        # In a group of its own Ctrl-C does not reach it.
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
        """Waits until a model is loaded.

        Raises:
            InvalidModel: the runtime refuses it.
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
        if _HOLDS:
            self._process.send_signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):  # The answer, or its absence, tells.
                print(command, file=self._process.stdin, flush=True)
            return self._answer()
        finally:
            self._hold()

    def _hold(self) -> None:
        """Lets no thread of it run until it is asked again."""
        if _HOLDS:
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
            raise InvalidModel(f"the process that measures it ended with code {code}")
        return line


class Comparison:
    """Interleaved runs of two systems on one feed, as many as were asked for."""

    def __init__(self, a: Worker, b: Worker, feed: int) -> None:
        self._a, self._b, self._feed = a, b, feed
        self._times: list[tuple[float, float]] = []

    def add(self) -> None:
        """One more pair. Who goes first changes from pair to pair: neither profits from its place."""
        if self.pairs % 2 == 0:
            first, second = self._a.milliseconds(self._feed), self._b.milliseconds(self._feed)
        else:
            second, first = self._b.milliseconds(self._feed), self._a.milliseconds(self._feed)
        self._times.append((first, second))

    @property
    def pairs(self) -> int:
        """Of runs, so far."""
        return len(self._times)

    @property
    def result(self) -> Paired:
        """Of the pairs so far, of which there is one."""
        return Paired.of(*zip(*self._times, strict=True))


def compare(
    a: Worker,
    b: Worker,
    feed: int,
    pairs: int,
    settled: Callable[[Paired], bool] = lambda so_far: False,
) -> Paired:
    """At most ``pairs`` interleaved runs of both on one feed, and no more than it takes until the result is
    ``settled`` or SECONDS are over."""
    found = Comparison(a, b, feed)
    end = time.monotonic() + SECONDS
    for _ in range(pairs):
        found.add()
        if found.pairs < LEAST_PAIRS:
            continue
        if time.monotonic() > end or settled(found.result):
            break
    return found.result
