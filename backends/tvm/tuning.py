"""Tunes how each kernel's work is divided, by measuring it in isolation on this machine.

A kernel's time depends on its operands' sizes only, so it is measured once for all models that contain it,
at the row counts that follow from the given sizes. The space is small: the rows per task, and the row count
up to which tasks divide the columns instead.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tersor.backends.tvm import formats, kernels
from tersor.backends.tvm.fuse import LINEAR, fuse
from tersor.backends.tvm.kernels.blocking import PANEL, padded
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear import kernel
from tersor.backends.tvm.kernels.linear_spec import COLUMN_VECTORS, MIN_ROWS, Grain, Linear
from tersor.backends.tvm.kernels.products import K_STEP
from tersor.backends.tvm.link import loaded, release
from tersor.backends.tvm.ops.fused import linear_spec
from tersor.backends.tvm.options import Choice
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target
from tersor.errors import InvalidOption
from tersor.ir import Graph
from tersor.ir.dims import evaluate, product, symbols
from tersor.pipeline.report import TuneReport
from tersor.target import Target, request_amx
from tersor.tuning.database import Database
from tersor.tuning.duel import is_gain
from tersor.tuning.measure import Paired
from tersor.tuning.search import time_left

ROWS = (32, 64, 128)  # Candidates for the rows per task.
ALWAYS = 1 << 30  # More rows than any operand has.
COLUMNS = "columns"
# The measured candidates: tasks of so many rows, or tasks that divide the columns.
CANDIDATES = {f"rows{r}": Grain(r, 0) for r in ROWS} | {COLUMNS: Grain(max(ROWS), ALWAYS)}
ROUNDS = 15
SAMPLE = 4e-4  # The minimum duration of a sample, in seconds.
Sizes = Mapping[str, int]
Progress = Callable[[int, int, str], None]
Times = dict[str, list[float]]  # Milliseconds per candidate, by round.


def tune(
    graph: Graph,
    choice: Choice,
    sizes: Sequence[Sizes],
    progress: Progress,
    database: Database,
) -> tuple[Choice, TuneReport]:
    """``choice`` with the best division of work of each kernel of ``graph`` at ``sizes``. Ctrl-C ends
    the measuring and keeps the results so far.

    Args:
        graph: after the passes, before lowering.
        sizes: of the open dims.
        progress: called with (done, total, what is measured).
        database: earlier results, to which new ones are added.

    Raises:
        InvalidOption: an entry of the database is not a result.
    """
    report = TuneReport(database=str(database.path))
    if "amx_int8" in choice.features and not request_amx():
        # The built model could not run either; the session reports so.
        report.remarks.append("the system does not let this process use AMX's tiles")
        return choice, report
    isa = Isa.of(choice.features, choice.cores)
    wanted = sorted(kernels_of(fuse(graph, isa), isa, sizes).items(), key=lambda kv: kv[0].name)
    report.total = len(wanted)
    grains: dict[str, Grain] = {}
    began = time.monotonic()
    try:
        for i, (spec, rows) in enumerate(wanted):
            key = key_of(spec, rows, choice)
            result = database.get(key)
            measured = result is None
            if measured:
                left = time_left(began, i, len(wanted))
                progress(i, len(wanted), f"tuning {spec.name}{left}")
                result = best(spec, isa, sorted(rows), choice)
                database.put(key, result)
            grains[spec.name] = _grain(result, database)
            row = {"name": spec.name, "grain": asdict(grains[spec.name]), "measured": measured}
            report.kernels.append(row)
    except KeyboardInterrupt:
        report.remarks.append("interrupted: kernels that were not measured keep their defaults")
    if database.problem:
        report.database = ""
        report.remarks.append(database.problem)
    chosen = tuple((name, grain.rows, grain.by_columns) for name, grain in grains.items())
    return choice.replace(grains=chosen), report


def _grain(result: Any, database: Database) -> Grain:
    """The grain of a result, which is from an untrusted file."""
    try:
        grain = Grain(**result["grain"])
    except (TypeError, KeyError):
        grain = None
    if grain is None or grain.rows not in ROWS or not isinstance(grain.by_columns, int):
        raise InvalidOption(f"{database.path} is damaged: remove it, or name another")
    return grain


def kernels_of(graph: Graph, isa: Isa, sizes: Sequence[Sizes]) -> dict[Linear, set[int]]:
    """The linear kernels of a fused graph, each with its row counts at ``sizes``; without those whose row
    count these do not determine."""
    counts: dict[Linear, set[int]] = {}
    for node in graph.nodes:
        dims = node.outputs[0].tensor.dims if node.op == LINEAR else None
        rows = product(dims[:-1]) if dims is not None else None
        if rows is not None and all(symbols(rows) <= size.keys() for size in sizes):
            at_sizes = {evaluate(rows, size) for size in sizes} - {0}
            counts.setdefault(linear_spec(node, isa), set()).update(at_sizes)
    return {spec: at_sizes for spec, at_sizes in counts.items() if at_sizes}


def key_of(spec: Linear, rows: Iterable[int], choice: Choice) -> str:
    """The key of a result, of all that it depends on: the kernel and its source, sizes, the machine, TVM."""
    cpu = Target.host().cpu or "unknown cpu"
    where = f"{cpu}, {choice.threads or choice.cores} threads, {' '.join(choice.features)}"
    sizes = "+".join(map(str, sorted(rows)))
    return f"{spec.name} m={sizes} | {where} | tvm {tvm.__version__} | kernels {source_digest()}"


@functools.cache
def source_digest() -> str:
    """A digest of the sources that emit and measure kernels."""
    sha = hashlib.sha256()
    for room in (kernels, formats):
        for path in sorted(Path(room.__path__[0]).glob("*.py")):
            sha.update(path.read_bytes())
    sha.update(Path(__file__).read_bytes())
    return sha.hexdigest()[:12]


def best(spec: Linear, isa: Isa, rows: Sequence[int], choice: Choice) -> dict[str, Any]:
    """The best division for ``rows``, ascending, as plain data: the ``grain``; the median ``ms`` of each
    candidate; and in ``duels``, for each row count at which they differ, the fastest compared with the
    default.

    The fastest of many candidates by a few samples may be so by chance: it is measured again against the
    default, and chosen only if it is slower at no row count and faster by the lower quartiles too.
    """
    functions = {
        name: kernel(spec, isa, grain).with_attr("global_symbol", name)
        for name, grain in CANDIDATES.items()
    }
    target = tvm_target(choice.features, choice.cores)
    executable = tvm.compile(tvm.IRModule(functions), target=target, tir_pipeline=TIR_PIPELINE)
    library = loaded(executable, choice.threads or choice.cores)
    calls = {
        name: library[name] for name in CANDIDATES
    }  # Looked up once, as each look-up takes 40 ms.
    tensors = {m: [tvm.runtime.tensor(array) for array in operands(spec, isa, m)] for m in rows}
    times = {m: _times(calls, list(CANDIDATES), given) for m, given in tensors.items()}
    medians = {m: {name: float(np.median(t)) for name, t in of.items()} for m, of in times.items()}
    winner, default = fastest(medians), Grain()
    duels = {}
    for m in rows:
        names = candidate(default, m), candidate(winner, m)
        if names[0] != names[1]:
            again = _times(calls, names, tensors[m])
            duels[m] = Paired.of(*(again[name] for name in names))
    release(library)
    is_better = (
        duels and is_gain(list(duels.values())) and not any(d.slower for d in duels.values())
    )
    return {
        "grain": asdict(winner if is_better else default),
        "ms": {str(m): {k: round(ms, 6) for k, ms in of.items()} for m, of in medians.items()},
        "duels": {
            str(m): {
                "default_ms": round(d.a_ms, 6),
                "winner_ms": round(d.b_ms, 6),
                "speedup": round(d.speedup, 4),
                "speedup_q1": round(d.low, 4),
                "speedup_q3": round(d.high, 4),
            }
            for m, d in duels.items()
        },
    }


def candidate(grain: Grain, m: int) -> str:
    """The candidate to which a kernel of ``grain`` is equivalent for ``m`` rows."""
    return COLUMNS if m <= grain.by_columns else f"rows{grain.rows}"


def fastest(medians: Mapping[int, Mapping[str, float]]) -> Grain:
    """The grain with the least product of times over the row counts; of equal ones the closest to the
    default."""
    grains = [
        Grain(rows, bound)
        for bound in (Grain.by_columns, 0, *medians)
        for rows in (Grain.rows, *ROWS)
    ]
    return min(
        grains, key=lambda g: sum(math.log(of[candidate(g, m)]) for m, of in medians.items())
    )


def operands(spec: Linear, isa: Isa, m: int) -> list[np.ndarray]:
    """Random operands of a kernel for ``m`` rows, and its zeroed results."""
    rng = np.random.default_rng(0)
    k, width, tall = padded(spec.k, K_STEP), padded(spec.n, PANEL), max(m, MIN_ROWS)
    lead = (*[1] * (spec.lead - 1), m)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if spec.quantized:
        given = [rng.integers(0, 255, (tall, k), np.uint8), np.ones((*lead, 2), np.float32)]
    else:
        given = [floats(*lead, spec.k)]
    for operand in formats.FORMATS[spec.format].operands(spec.k, spec.n, isa):
        dtype = np.dtype(operand.dtype)
        if dtype.kind == "f":
            given.append(floats(*operand.shape).astype(dtype, copy=False))
        else:
            low, high = (-64, 64) if dtype.kind == "i" else (0, 128)
            given.append(rng.integers(low, high, operand.shape, dtype))
    given.append(floats(COLUMN_VECTORS, width))
    if spec.norm != "none":
        given.append(floats(*lead, spec.n))
    if spec.result:
        dtype = np.dtype(np.uint16 if spec.result == "bfloat16" else np.float32)
        given.append(np.zeros((*lead, spec.n), dtype))
    if spec.quantize:
        given += [
            np.zeros((tall, padded(spec.n, K_STEP)), np.uint8),
            np.zeros((*lead, 2), np.float32),
        ]
    return given


def _times(calls: Mapping[str, Any], names: Sequence[str], tensors: Sequence[Any]) -> Times:
    """The times of functions, called in turn, in alternating order."""
    once = {name: _seconds(calls[name], tensors, 2) for name in names}
    counts = {name: max(1, int(SAMPLE / once[name])) for name in names}
    times: Times = {name: [] for name in names}
    for i in range(ROUNDS):
        for name in names if i % 2 == 0 else reversed(names):
            times[name].append(_seconds(calls[name], tensors, counts[name]) * 1e3)
    return times


def _seconds(call: Any, tensors: Sequence[Any], count: int) -> float:
    """Seconds per call, averaged over ``count``."""
    start = time.perf_counter()
    for _ in range(count):
        call(*tensors)
    return (time.perf_counter() - start) / count
