"""The machine's peaks: dot products and multiply-adds on registers alone, and memory reads.

Each is a loop of the best instruction sequence for the job, whether kernels use it or not, on as many
independent accumulators as its latency needs. The accumulator itself is multiplied where the instruction
allows it, so that nothing can be hoisted out of the loop. The best of many runs counts, because other
processes can only slow a run down.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm.tirx.script.builder import ir as T

from tersor.backends.tvm.kernels import emit, products
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.link import loaded
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target
from tersor.backends.tvm.session import aligned
from tersor.target import ISA_LEVELS, Target

STEPS = 50_000
READ_BYTES = 1 << 30  # More than fits in any cache.
# ISA levels whose kernels differ, by how they sum u8 x s8 products, the best first.
LEVELS = ("amx_int8", "avx512_vnni", "avx512", "avx2")


def levels() -> dict[str, frozenset[str]]:
    """The levels that this machine can run, and their features."""
    host = Target.host().features
    return {name: ISA_LEVELS[name] for name in LEVELS if ISA_LEVELS[name] <= host}


@dataclass
class Peak:
    """A loop of one instruction sequence, with ``work`` operations (or bytes) per run."""

    instruction: str
    unit: str
    threads: int
    work: int
    run: Callable[[], None]
    best: float = field(default=0.0, init=False)  # 10^9 operations or bytes per second.

    def measure(self, seconds: float = 0.05) -> None:
        """More runs for ``seconds``, at least two; the best counts."""
        end, runs = time.perf_counter() + seconds, 0
        while runs < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            self.run()
            self.best = max(self.best, self.work / (time.perf_counter() - start) / 1e9)
            runs += 1


class Peaks:
    """The peaks of the machine, each on one thread and on all."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._memory = aligned((READ_BYTES,), np.dtype(np.uint8))
        self._memory[:] = 1  # Touches all pages.
        self._peaks: dict[tuple[str, int], Peak] = {}
        for threads in sorted({1, cores}):
            for name, make in self._makers().items():
                self._peaks[name, threads] = make(threads)

    def _makers(self) -> dict[str, Callable[[int], Peak]]:
        """``int8 LEVEL``, for levels without VNNI also ``int8 LEVEL pairs``, ``float32 LANES``,
        ``bfloat16``, ``read``."""
        makers: dict[str, Callable[[int], Peak]] = {}
        by_level = levels()
        for level, features in by_level.items():
            makers[f"int8 {level}"] = functools.partial(_int8, features)
            if Isa.of(features, 1).dot == "widen":
                makers[f"int8 {level} pairs"] = functools.partial(_pairs, features)
            lanes = Isa.of(features, 1).lanes
            makers.setdefault(f"float32 {lanes}", functools.partial(_fma, features))
        if "amx_int8" in by_level:
            makers["bfloat16"] = functools.partial(_bfloat16, by_level["amx_int8"])
        widest = next(iter(by_level.values()), frozenset())
        makers["read"] = functools.partial(_read, widest, self._memory)
        return makers

    def measure(self) -> None:
        """More runs of all, for about a second."""
        for peak in self._peaks.values():
            peak.measure()

    def of(self, name: str, threads: int | None = None) -> float:
        """The best so far, in 10^9 per second; by default on all cores."""
        return self._peaks[name, threads or self.cores].best

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [
            {
                "peak": name,
                "instruction": p.instruction,
                "threads": threads,
                "best": round(p.best, 1),
                "unit": p.unit,
            }
            for (name, threads), p in self._peaks.items()
        ]


def _loop(
    name: str,
    features: frozenset[str],
    threads: int,
    body: Callable[[Isa, Any, Any], None],
    tiles: bool = False,
) -> Callable[[], None]:
    """Each of ``threads`` tasks runs ``body(isa, a, out)`` with 1 KiB of ones and the place of its
    results."""
    isa = Isa.of(features, threads)

    def emitted() -> None:
        a = emit.parameter("a", (16, 64), "uint8")
        out = emit.parameter("out", (threads, 16, 16), "int32")
        with T.parallel(0, threads) as task, products.tiles(tiles):
            body(isa, a, lambda *at, of=out: (of, task, *at))

    function = _compiled(name, emitted, features, threads)
    a = tvm.runtime.tensor(np.ones((16, 64), np.uint8))
    out = tvm.runtime.tensor(np.zeros((threads, 16, 16), np.int32))
    return lambda: function(a, out)


def _compiled(
    name: str, emitted: Callable[[], None], features: frozenset[str], threads: int
) -> Any:
    module = tvm.IRModule({name: emit.function(name, emitted)})
    executable = tvm.compile(module, tvm_target(features, threads), tir_pipeline=TIR_PIPELINE)
    return loaded(executable, threads)[name]


def _tiles(
    name: str, instruction: str, features: frozenset[str], threads: int
) -> Callable[[], None]:
    """Four products of two by two tiles per step."""

    def body(isa: Isa, a: Any, out: Any) -> None:
        for tile in range(8):
            emit.run("llvm.x86.tileloadd64", T.uint8(tile), a.access_ptr("r"), T.int64(64))
        with T.serial(0, STEPS):
            for t in range(4):
                emit.run(instruction, T.uint8(t), T.uint8(4 + t // 2), T.uint8(6 + t % 2))
        buffer, task = out()
        for t in range(4):
            to = buffer.access_ptr("w", offset=task * 256)
            emit.run("llvm.x86.tilestored64", T.uint8(t), to, T.int64(64))

    return _loop(name, features, threads, body, tiles=True)


def _vectors(
    name: str,
    features: frozenset[str],
    threads: int,
    dtype: str,
    step: Callable[[Isa, Any, Any], Any],
) -> tuple[Callable[[], None], int]:
    """A loop of ``step(isa, accumulator, ones)``, and the number of accumulators."""
    count = 16 if "avx512f" in features else 10  # AVX2 has 16 registers.

    def body(isa: Isa, a: Any, out: Any) -> None:
        lanes = isa.lanes
        ones = emit.bind(emit.as_bits(emit.load(a, 0, 0, lanes=4 * lanes), f"int8x{4 * lanes}"))
        accumulators = [emit.register(lanes, dtype) for _ in range(count)]
        for i, register in enumerate(accumulators):
            start = emit.cast(T.int32(i), dtype)
            emit.put(register, T.broadcast(start, lanes))
        with T.serial(0, STEPS):
            for register in accumulators:
                emit.put(register, step(isa, emit.get(register), ones))
        total = functools.reduce(operator.add, [emit.get(r) for r in accumulators])
        buffer, task, *at = out(0, 0)
        emit.store(buffer, emit.as_bits(total, f"int32x{lanes}"), task, *at, lanes=lanes)

    return _loop(name, features, threads, body), count


def _int8(features: frozenset[str], threads: int) -> Peak:
    isa = Isa.of(features, threads)
    if isa.dot == "amx":
        run = _tiles("tdpbusd", "llvm.x86.tdpbusd", features, threads)
        return Peak("tdpbusd", "GOP/s", threads, STEPS * 4 * 2 * 16 * 16 * 64 * threads, run)
    if isa.dot == "vnni":
        run, count = _vectors("vpdpbusd", features, threads, "int32", _dot)
        return Peak("vpdpbusd", "GOP/s", threads, STEPS * count * 2 * 64 * threads, run)
    # u8 x s8 without VNNI: sums of four products in 16 bits are widened at once (``sums.FOURS``).
    run, count = _vectors(f"fours{isa.lanes}", features, threads, "int32", _fours)
    work = STEPS * count * 2 * 8 * isa.lanes * threads
    instructions = f"2 vpmaddubsw, vpmaddwd, {isa.lanes * 32} bits"
    return Peak(instructions, "GOP/s", threads, work, run)


def _pairs(features: frozenset[str], threads: int) -> Peak:
    """The same for activations of 8 bits: sums of two products are widened."""
    isa = Isa.of(features, threads)
    run, count = _vectors(f"pairs{isa.lanes}", features, threads, "int32", _two)
    work = STEPS * count * 2 * 4 * isa.lanes * threads
    instructions = f"vpmaddubsw, vpmaddwd, {isa.lanes * 32} bits"
    return Peak(instructions, "GOP/s", threads, work, run)


def _dot(isa: Isa, accumulator: Any, ones: Any) -> Any:
    return emit.intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", accumulator, ones, ones)


def _two(isa: Isa, accumulator: Any, ones: Any) -> Any:
    return accumulator + _widened(isa, _in_16_bits(isa, accumulator, ones))


def _fours(isa: Isa, accumulator: Any, ones: Any) -> Any:
    """The second operand differs, so that neither product is eliminated."""
    both = [_in_16_bits(isa, accumulator, w) for w in (ones, ones + ones)]
    return accumulator + _widened(isa, both[0] + both[1])


def _in_16_bits(isa: Isa, accumulator: Any, w: Any) -> Any:
    a = emit.as_bits(accumulator, f"int8x{4 * isa.lanes}")
    return emit.intrinsic(f"int16x{2 * isa.lanes}", products.PAIRS[isa.lanes][0], a, w)


def _widened(isa: Isa, sums: Any) -> Any:
    ones = T.broadcast(T.int16(1), 2 * isa.lanes)
    return emit.intrinsic(f"int32x{isa.lanes}", products.PAIRS[isa.lanes][1], sums, ones)


def _bfloat16(features: frozenset[str], threads: int) -> Peak:
    run = _tiles("tdpbf16ps", "llvm.x86.tdpbf16ps", features, threads)
    return Peak("tdpbf16ps", "GFLOP/s", threads, STEPS * 4 * 2 * 16 * 16 * 32 * threads, run)


def _fma(features: frozenset[str], threads: int) -> Peak:
    lanes = Isa.of(features, threads).lanes
    run, count = _vectors(f"fma{lanes}", features, threads, "float32", _multiply_add)
    work = STEPS * count * 2 * lanes * threads
    return Peak(f"vfmadd, {lanes * 32} bits", "GFLOP/s", threads, work, run)


def _multiply_add(isa: Isa, accumulator: Any, ones: Any) -> Any:
    """x <- x / 2 + 1, which stays finite."""
    half, one = (emit.number(v, isa.lanes) for v in (0.5, 1.0))
    return emit.intrinsic(f"float32x{isa.lanes}", "llvm.fma", accumulator, half, one)


def _read(features: frozenset[str], memory: np.ndarray, threads: int) -> Peak:
    """The sum of memory larger than any cache, one part per thread."""
    isa = Isa.of(features, threads)
    lanes, unroll = isa.lanes, 8
    parts = memory.nbytes // (4 * lanes * unroll * threads)
    each = parts * lanes * unroll

    def emitted() -> None:
        data = emit.parameter("data", (threads, each), "int32")
        out = emit.parameter("out", (threads, lanes), "int32")
        with T.parallel(0, threads) as task:
            accumulators = [emit.register(lanes, "int32") for _ in range(unroll)]
            for register in accumulators:
                emit.put(register, T.broadcast(T.int32(0), lanes))
            with T.serial(0, T.int64(parts)) as part:
                for i, register in enumerate(accumulators):
                    at = (part * unroll + i) * lanes
                    value = emit.load(data, task, at, lanes=lanes)
                    emit.put(register, emit.get(register) + value)
            total = functools.reduce(operator.add, [emit.get(r) for r in accumulators])
            emit.store(out, total, task, 0, lanes=lanes)

    function = _compiled("read", emitted, features, threads)
    size = threads * each
    data = tvm.runtime.from_dlpack(memory.view(np.int32)[:size].reshape(threads, each))
    out = tvm.runtime.tensor(np.zeros((threads, lanes), np.int32))
    return Peak("loads", "GB/s", threads, size * 4, lambda: function(data, out))
