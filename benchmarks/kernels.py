"""MiniLM's kernels against the machine's peak: microseconds, rate, share of the peak.

1,024 rows (8 sentences of 128 tokens), for each ISA of this machine whose kernels differ: linear layers bare
(quantized rows in, float32 out) and as fused in the model, with norms, activations and the quantization of
the next layer's input; attention; embeddings with their norm. Rounds of all kernels are interleaved, and the
peaks are measured in between.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import peaks
import rows
import tvm

from tersor.backends.tvm.formats import float32, int8
from tersor.backends.tvm.kernels import (
    attention,
    attention_int16,
    embedding,
    linear,
    linear_spec,
    products,
)
from tersor.backends.tvm.kernels.attention_spec import Attention
from tersor.backends.tvm.kernels.blocking import padded
from tersor.backends.tvm.kernels.embedding import EmbeddingNorm, Table
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.kernels.linear_spec import Linear
from tersor.backends.tvm.link import loaded
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target
from tersor.backends.tvm.session import aligned
from tersor.target import request_amx, usable_cores

BATCH, LENGTH = 8, 128
M = BATCH * LENGTH
HIDDEN, WIDE, HEADS, HEAD, WORDS = 384, 1536, 12, 32, 30522
EPSILON = 1e-12
CALLS = 5  # Per kernel and round.
SCRIPTS = [Path(__file__), Path(peaks.__file__)]
Arrays = list[np.ndarray]


@dataclass
class Timed:
    """A kernel with its operands.

    Attributes:
        level: the ISA level that it is built for.
        group: ``bare`` or ``in the model``.
        operations: multiplications and additions of its products; 0 if it has none.
        moved: bytes read and written.
        peak: the peak to compare with, by its name in ``Peaks``; empty if its data stays in caches, so that
            memory bandwidth is no limit.
        times: microseconds of each call.
    """

    level: str
    group: str
    label: str
    operations: int
    moved: int
    peak: str
    run: Callable[[], None]
    times: list[float] = field(default_factory=list)

    def measure(self, calls: int) -> None:
        """Times ``calls`` more calls, after an untimed one."""
        self.run()
        for _ in range(calls):
            start = time.perf_counter()
            self.run()
            self.times.append((time.perf_counter() - start) * 1e6)

    def to_json(self, machine: peaks.Peaks) -> dict[str, Any]:
        """Plain data."""
        spent = rows.quartiles(self.times, 1)
        work = self.operations or self.moved
        rate = work / spent["median"] / 1e3
        return {
            "level": self.level,
            "group": self.group,
            "kernel": self.label,
            "us": spent,
            "rate": round(rate, 1),
            "unit": "GOP/s" if self.operations else "GB/s",
            "peak": self.peak,
            "share": round(rate / machine.of(self.peak), 3) if self.peak else None,
            "calls": len(self.times),
        }


def linears(isa: Isa, wanted: Collection[str]) -> Iterator[tuple[str, str, Linear]]:
    """(group, label, the kernel's specialization)"""
    # As the int8 recipe rounds weights for such a target.
    safe = int8.FOURS if isa.dot == "widen" else ""
    bare = {
        "q, k and v": (HIDDEN, 3 * HIDDEN),
        "attention out": (HIDDEN, HIDDEN),
        "feed forward in": (HIDDEN, WIDE),
        "feed forward out": (WIDE, HIDDEN),
    }
    for product in wanted:
        for label, (k, n) in bare.items():
            whole = product == "int8"
            spec = Linear(k, n, format=product, quantized=whole, variant=safe if whole else "")
            yield "bare", f"{product} {label} {k}x{n}", spec
    norm = {"norm": "layer", "epsilon": EPSILON}
    fused: dict[str, dict[str, Any]] = {
        "q, k and v": {"result": "bfloat16" if isa.bfloat16 else "float32", "quantized": True},
        "attention out": {**norm, "quantize": True},
        "feed forward in": {
            "activation": "gelu", "result": "", "quantize": True, "quantized": True,
        },
        "feed forward out": {**norm, "quantize": True, "quantized": True},
    }  # fmt: skip
    for label, options in fused.items():
        k, n = bare[label]
        spec = Linear(k, n, variant=safe, **options)
        yield "in the model", f"int8 {label} {k}x{n}: {_steps(options)}", spec
    floats: dict[str, dict[str, Any]] = {
        "q, k and v": {},
        "attention out": norm,
        "feed forward in": {"activation": "gelu"},
        "feed forward out": norm,
    }
    for label, options in floats.items() if "float32" in wanted else ():
        k, n = bare[label]
        spec = Linear(k, n, format="float32", **options)
        yield "in the model", f"float32 {label} {k}x{n}: {_steps(options)}", spec


def _steps(options: dict[str, Any]) -> str:
    """The steps of one launch: ``quantize, product, gelu, quantize``."""
    steps = ["product"]
    if "activation" in options:
        steps.append(str(options["activation"]))
    if "norm" in options:
        steps.append("residual and norm")
    if options.get("quantize"):
        steps.append("quantize")
        if not options.get("quantized"):
            steps.insert(0, "quantize")
    return ", ".join(steps)


def linear_arrays(spec: Linear, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Operands and results."""
    whole, tall = spec.format == "int8", max(M, linear_spec.MIN_ROWS)
    lead = (BATCH, LENGTH)
    inputs: Arrays = []
    if spec.quantized:
        q = rng.integers(0, 256, (tall, padded(spec.k, products.K_STEP)))
        ranges = np.empty((*lead, 2), np.float32)
        ranges[...] = 0.01, 128
        inputs += [q.astype(np.uint8), ranges]
    else:
        inputs.append(_normal(rng, *lead, spec.k))
    vectors = [_normal(rng, spec.n) for _ in range(3)]
    if whole:
        most = 32 if spec.variant else 127
        weight = rng.integers(-most, most + 1, (spec.k, spec.n)).astype(np.int8)
        scale = np.full(spec.n, 0.002, np.float32)
        own = (scale, weight.sum(0))
        inputs += [int8.pack(weight), linear_spec.column_vectors(spec, own, *vectors)]
    else:
        weight = _normal(rng, spec.k, spec.n)
        inputs += [float32.pack(weight), linear_spec.column_vectors(spec, (), *vectors)]
    if spec.norm != "none":
        inputs.append(_normal(rng, *lead, spec.n))
    outputs: Arrays = []
    if spec.result:
        outputs.append(
            np.zeros((*lead, spec.n), np.uint16 if spec.result == "bfloat16" else np.float32)
        )
    if spec.quantize:
        outputs.append(np.zeros((tall, padded(spec.n, products.K_STEP)), np.uint8))
        outputs.append(np.zeros((*lead, 2), np.float32))
    return inputs, outputs


def attention_of(dtype: str, rng: np.random.Generator) -> tuple[Attention, Arrays, Arrays]:
    """MiniLM's attention, with a mask of ones."""
    spec = Attention(
        HEADS, HEADS, HEAD, HEAD, HEAD**-0.5, dtype, "packed", mask="bool", axes="b11k"
    )
    packed = _normal(rng, BATCH, LENGTH, 3 * HIDDEN)
    qkv = (packed.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else packed
    mask = np.ones((BATCH, 1, 1, LENGTH), np.bool_)
    return spec, [qkv, mask], [np.zeros((BATCH, LENGTH, HIDDEN), np.float32)]


def embedding_of(rng: np.random.Generator) -> tuple[EmbeddingNorm, Arrays, Arrays]:
    """MiniLM's embeddings, in int8: words, positions, one type of token."""
    tables = (
        Table(WORDS, True, "int64", True, True),
        Table(512, True, "int64", False, True),
        Table(2, True, "int64", False, False),
    )
    inputs: Arrays = [_normal(rng, 2, HIDDEN)]
    for table in tables:
        shape = (BATCH if table.per_batch else 1, LENGTH if table.per_position else 1)
        inputs.append(rng.integers(0, table.rows, shape))
        inputs.append(rng.integers(-127, 128, (table.rows, HIDDEN)).astype(np.int8))
        inputs.append(np.full(table.rows, 0.01, np.float32))
    return EmbeddingNorm(HIDDEN, EPSILON, tables), inputs, [
        np.zeros((BATCH, LENGTH, HIDDEN), np.float32)
    ]  # fmt: skip


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def timed(
    level: str, features: frozenset[str], cores: int, floats: bool, tell: rows.Tell
) -> list[Timed]:
    """The kernels for an ISA level; those without int8 products only if ``floats``."""
    isa, rng = Isa.of(features, cores), np.random.default_rng(0)
    plain, float_peak = replace(isa, bfloat16=False), f"float32 {isa.lanes}"

    def ready(name: str, function: Any, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        tell(0, 1, f"building {name}")
        module = tvm.IRModule({name: function})
        executable = tvm.compile(module, tvm_target(features, cores), tir_pipeline=TIR_PIPELINE)
        built = loaded(executable, cores)[name]
        arguments = [_passed(a) for a in (*inputs, *outputs)]
        return lambda: built(*arguments)

    timings = []
    for group, label, spec in linears(isa, ("int8", "float32") if floats else ("int8",)):
        inputs, outputs = linear_arrays(spec, rng)
        run = ready(spec.name, linear.kernel(spec, isa), inputs, outputs)
        peak = f"int8 {level}" if spec.format == "int8" else float_peak
        work = 2 * M * spec.k * spec.n
        timings.append(Timed(level, group, label, work, _bytes(inputs, outputs), peak, run))
    dtypes = ["bfloat16"] if isa.bfloat16 else []
    dtypes += ["int16"] if attention_int16.takes(isa, HEAD, HEAD) else []
    for dtype in (*dtypes, *(["float32"] if floats else [])):
        attends, inputs, outputs = attention_of(dtype, rng)
        function = attention.kernel(attends, isa if dtype == "bfloat16" else plain)
        run = ready(attends.name, function, inputs, outputs)
        work = 2 * 2 * BATCH * HEADS * LENGTH * LENGTH * HEAD
        peak = "bfloat16" if dtype == "bfloat16" else float_peak
        label = f"attention in {dtype}"
        timings.append(
            Timed(level, "in the model", label, work, _bytes(inputs, outputs), peak, run)
        )
    if not floats:
        return timings
    embeds, inputs, outputs = embedding_of(rng)
    run = ready(embeds.name, embedding.kernel(embeds, isa), inputs, outputs)
    moved = 2 * outputs[0].nbytes  # Rows of the table (a quarter), their sum, its norm.
    timings.append(Timed(level, "in the model", "embeddings and norm", 0, moved, "", run))
    return timings


def _passed(array: np.ndarray) -> Any:
    """A copy of the array with the alignment that kernels need."""
    memory = aligned(array.shape, array.dtype)
    memory[...] = array
    return tvm.runtime.from_dlpack(memory)


def _bytes(inputs: Arrays, outputs: Arrays) -> int:
    return sum(a.nbytes for a in (*inputs, *outputs))


def measure(count: int) -> dict[str, Any]:
    """``count`` rounds over all kernels of all levels."""
    cores = len(usable_cores())
    request_amx()
    tell = rows.progress("kernels:")
    tell(0, 1, "building the peaks")
    machine, kernels, widths = peaks.Peaks(cores), [], set()
    for level, features in peaks.levels().items():
        lanes = Isa.of(features, cores).lanes
        # Float kernels are the same for all levels of one vector width.
        kernels += timed(level, features, cores, lanes not in widths, tell)
        widths.add(lanes)
    for i in range(count):
        machine.measure()
        for kernel in kernels:
            kernel.measure(CALLS)
        tell(i + 1, count, "measuring, round by round")
    machine.measure()
    return {
        "rows": M,
        "rounds": count,
        "threads": cores,
        "peaks": machine.to_json(),
        "kernels": [k.to_json(machine) for k in kernels],
    }


def main() -> int:
    """Measures, unless the stored results are up to date."""
    start = time.monotonic()
    parser = rows.parser(__doc__, "kernels.json")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    wanted = rows.conditions(SCRIPTS, {"rounds": arguments.rounds})
    results = rows.load(arguments.out, wanted, arguments.fresh)
    if "kernels" in results:
        print("kernels: up to date")
        return 0
    results.update(measure(arguments.rounds))
    rows.finish(arguments.out, results, start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
