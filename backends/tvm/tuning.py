"""How kernels divide their work, chosen by measuring each alone on this machine.

A kernel's time depends on its operands' sizes and on nothing else of the model, so it is measured once
for all models that hold it, at the numbers of rows that the wanted sizes give. The space is small: how
many rows a task has, and up to how many rows tasks divide the columns instead.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tersor.backends.tvm import kernels
from tersor.backends.tvm.fuse import LINEAR, fuse
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear import LEAST_ROWS, Grain, Linear, kernel
from tersor.backends.tvm.kernels.products import K_STEP, PANEL, padded
from tersor.backends.tvm.ops.fused import linear_spec
from tersor.backends.tvm.options import Choice
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target
from tersor.backends.tvm.session import set_threads
from tersor.ir import Graph
from tersor.ir.dims import evaluate, product
from tersor.target import Target, request_amx
from tersor.tuning.database import Database

ROWS = (32, 64, 128)  # Of a task, that are tried.
ALWAYS = 1 << 30  # More rows than any operand has.
ROUNDS = 15
SAMPLE = 4e-4  # Seconds that a sample takes at least.
Sizes = Mapping[str, int]
Progress = Callable[[int, int, str], None]


def tune(
    graph: Graph,
    choice: Choice,
    sizes: Sequence[Sizes],
    progress: Progress,
    database: Database | None = None,
) -> Choice:
    """``choice`` with the best division of work of each kernel of ``graph`` at ``sizes``. Ctrl-C ends
    the measuring and keeps what is known so far.

    Args:
        graph: what passes made, before it is lowered.
        sizes: of the open dims.
        database: of earlier results; by default this user's.
    """
    if "amx_int8" in choice.features and not request_amx():
        return choice  # What is built could not be run either; the session says so.
    database = database or Database()
    isa = Isa.of(choice.features, choice.cores)
    set_threads(choice.threads or choice.cores)
    wanted = kernels_of(fuse(graph, isa), isa, sizes)
    grains: dict[str, Grain] = {}
    try:
        for i, (spec, rows) in enumerate(sorted(wanted.items(), key=lambda item: item[0].name)):
            key = key_of(spec, rows, choice)
            held = database.get(key)
            if held is None:
                progress(i, len(wanted), f"tuning {spec.name}")
                held = asdict(best(spec, isa, sorted(rows), choice))
                database.put(key, held)
            grains[spec.name] = Grain(**held)
    except KeyboardInterrupt:
        progress(
            len(grains), len(wanted), "interrupted: kernels that were not reached keep defaults"
        )
    return replace(choice, grains=tuple((n, g.rows, g.by_columns) for n, g in grains.items()))


def kernels_of(graph: Graph, isa: Isa, sizes: Sequence[Sizes]) -> dict[Linear, set[int]]:
    """The linear kernels of a fused graph, each with the numbers of rows that it meets."""
    found: dict[Linear, set[int]] = {}
    for node in graph.nodes:
        dims = node.outputs[0].tensor.dims if node.op == LINEAR else None
        rows = product(dims[:-1]) if dims is not None else None
        if rows is not None:
            met = {evaluate(rows, size) for size in sizes}
            found.setdefault(linear_spec(node, isa), set()).update(met)
    return found


def key_of(spec: Linear, rows: Iterable[int], choice: Choice) -> str:
    """All that a result depends on: the kernel and its source, sizes, the machine, TVM."""
    cpu = Target.host().cpu or "unknown cpu"
    where = f"{cpu}, {choice.threads or choice.cores} threads, {' '.join(choice.features)}"
    sizes = "+".join(map(str, sorted(rows)))
    return f"{spec.name} m={sizes} | {where} | tvm {tvm.__version__} | kernels {source_digest()}"


@functools.cache
def source_digest() -> str:
    """Of the files that kernels are emitted by."""
    sha = hashlib.sha256()
    for path in sorted(Path(kernels.__path__[0]).glob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def best(spec: Linear, isa: Isa, rows: Sequence[int], choice: Choice) -> Grain:
    """The best division for ``rows``, ascending: tasks of the size that is fastest for the most rows,
    and columns divided up to the number of rows where that no longer wins."""
    tried = {f"rows{r}": Grain(r, 0) for r in ROWS} | {"columns": Grain(max(ROWS), ALWAYS)}
    functions = {
        name: kernel(spec, isa, grain).with_attr("global_symbol", name)
        for name, grain in tried.items()
    }
    target = tvm_target(choice.features, choice.cores)
    library = tvm.compile(tvm.IRModule(functions), target=target, tir_pipeline=TIR_PIPELINE)
    times = {m: _times(library, list(tried), operands(spec, m)) for m in rows}
    most = times[rows[-1]]
    size = min(ROWS, key=lambda r: most[f"rows{r}"])
    by_columns = 0
    for m in rows:
        if times[m]["columns"] >= times[m][f"rows{size}"]:
            break
        by_columns = m
    return Grain(size, by_columns)


def operands(spec: Linear, m: int) -> list[np.ndarray]:
    """Operands and results of a kernel for ``m`` rows, with made-up numbers."""
    rng = np.random.default_rng(0)
    k, width, tall = padded(spec.k, K_STEP), padded(spec.n, PANEL), max(m, LEAST_ROWS)
    lead = (*[1] * (spec.lead - 1), m)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if spec.quantized:
        given = [rng.integers(0, 255, (tall, k), np.uint8), np.ones((*lead, 2), np.float32)]
    else:
        given = [floats(*lead, spec.k)]
    if spec.product == "int8":
        given.append(rng.integers(-64, 64, (width // PANEL, 2, k // 4, 64), np.int8))
    else:
        given.append(floats(width // PANEL, spec.k, PANEL))
    given.append(floats(5, width))
    if spec.norm != "none":
        given.append(floats(*lead, spec.n))
    if spec.result:
        held = np.uint16 if spec.result == "bfloat16" else np.float32
        given.append(np.zeros((*lead, spec.n), held))
    if spec.quantize:
        given += [
            np.zeros((tall, padded(spec.n, K_STEP)), np.uint8),
            np.zeros((*lead, 2), np.float32),
        ]
    return given


def _times(library: Any, names: Sequence[str], arrays: Sequence[np.ndarray]) -> dict[str, float]:
    """Median seconds of a call of each, measured in turn."""
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    calls = {name: library[name] for name in names}
    once = {name: _seconds(call, tensors, 2) for name, call in calls.items()}
    counts = {name: max(1, int(SAMPLE / once[name])) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(_seconds(call, tensors, counts[name]))
    return {name: float(np.median(times)) for name, times in found.items()}


def _seconds(call: Any, tensors: Sequence[Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call(*tensors)
    return (time.perf_counter() - start) / count
