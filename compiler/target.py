"""Target machines: the facts that passes and backends base decisions on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tersor.errors import InvalidOption, suggest

# ISA levels by name, with the features each implies (x86 levels nest).
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_AMX = frozenset({"amx_tile", "amx_int8", "amx_bf16"})
ISA_LEVELS: dict[str, frozenset[str]] = {
    "avx2": _AVX2,
    "avx_vnni": _AVX2 | {"avx_vnni"},
    "avx512": _AVX512,
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    # Every processor with AMX has these.
    "amx_int8": _AVX512 | _AMX | {"avx512_vnni", "avx_vnni", "avx512_bf16"},
    "neon": frozenset({"neon"}),
    "neon_dotprod": frozenset({"neon", "neon_dotprod"}),
}
MAX_THREADS = 4096  # More than any machine has cores.
_X86 = frozenset({"avx2", "avx512f"})
_EXACT_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
# Linux, x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        name: ``cpu``, ``cpu:avx2``, ``cuda:sm_90``.
        kind: ``cpu`` or ``cuda``.
        features: ISA features (``avx2``, ``avx512_vnni``, ``neon_dotprod``, ``sm_90``).
        cores: threads that a runtime may use.
        is_host: whether it is this machine, so that it can be measured.
        cpu: the processor's model name, empty where unknown.
        caches: bytes of the L1 data, L2 and L3 cache, 0 where unknown.
        gflops: measured fp32 multiply-add rate on all cores (10^9 flop/s), None until measured.
        bandwidth: measured memory read rate on one core (GB/s), None until measured.
    """

    name: str
    kind: str
    features: frozenset[str]
    cores: int
    is_host: bool = False
    cpu: str = ""
    caches: tuple[int, int, int] = (0, 0, 0)
    gflops: float | None = None
    bandwidth: float | None = None

    @property
    def saturates_int8(self) -> bool:
        """Whether u8 x s8 products are summed in pairs into saturating 16 bits: x86's vpmaddubsw, used
        without VNNI and AMX."""
        return bool(self.features & _X86) and not self.features & _EXACT_INT8

    @staticmethod
    def host() -> Target:
        """This machine."""
        cpu, features = _host_cpu()
        return Target(
            "cpu",
            "cpu",
            features,
            len(usable_cores()),
            True,
            cpu,
            tuple(map(_cache, (1, 2, 3))),  # type: ignore[arg-type]
        )

    @staticmethod
    def parse(text: str) -> Target:
        """``cpu`` is this machine; ``cpu:<isa>`` this machine limited to an ISA level, or another machine
        if this one lacks it; ``cuda:sm_NN`` a GPU.

        Raises:
            InvalidOption: no such kind or ISA level.
        """
        kind, _, isa = text.partition(":")
        if kind == "cuda":
            if not re.fullmatch(r"sm_\d+[a-z]?", isa):
                raise InvalidOption(f"target {text!r}: write cuda:sm_NN, as in cuda:sm_90")
            return Target(text, "cuda", frozenset({isa}), 1)
        if kind != "cpu":
            raise InvalidOption(f"no target {text!r}{suggest(kind, ('cpu', 'cuda'))}")
        host = Target.host()
        if not isa:
            return host
        if isa not in ISA_LEVELS:
            known = ", ".join(ISA_LEVELS)
            raise InvalidOption(
                f"no ISA level {isa!r}{suggest(isa, ISA_LEVELS)}; there are {known}"
            )
        wanted = ISA_LEVELS[isa]
        return replace(host, name=text, features=wanted, is_host=wanted <= host.features)

    def measured(self) -> Target:
        """This target with ``gflops`` and ``bandwidth`` filled in; takes about a second.

        Raises:
            InvalidOption: it is not this machine.
        """
        if not self.is_host:
            raise InvalidOption(f"target {self.name} is not this machine and cannot be measured")
        return replace(self, gflops=_measure_gflops(), bandwidth=_measure_bandwidth())


def check_threads(count: int) -> None:
    """Checks a number of threads; 0 means one per core.

    Raises:
        InvalidOption: out of range.
    """
    if not 0 <= count <= MAX_THREADS:
        raise InvalidOption(f"{count} threads: give 0 (one for each core) to {MAX_THREADS}")


def request_amx() -> bool:
    """Whether this process may use AMX tiles. Linux requires a request per process, before the first such
    instruction; repeating it is harmless."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA) == 0)


def usable_cores() -> list[int]:
    """Indices of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _host_cpu() -> tuple[str, frozenset[str]]:
    """Name and ISA features, read from the operating system."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        flags = _cpuinfo("Features").split()
        dot = "asimddp" in flags or platform.system() == "Darwin"
        return platform.processor(), ISA_LEVELS["neon_dotprod" if dot else "neon"]
    flags = _cpuinfo("flags").split()
    known = frozenset().union(*ISA_LEVELS.values())
    return _cpuinfo("model name"), frozenset(flags) & known


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    match = re.search(rf"^{re.escape(field)}\s*:\s*(.*)$", path.read_text(), re.MULTILINE)
    return match.group(1).strip() if match else ""


def _cache(level: int) -> int:
    """Bytes of the first core's data or unified cache of a level, as Linux reports them."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        facts = {n: (index / n).read_text().strip() for n in ("level", "type", "size")}
        if facts["level"] == str(level) and facts["type"] != "Instruction":
            return int(facts["size"].removesuffix("K")) * 1024
    return 0


def _best_seconds(work: object, rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def _measure_gflops() -> float:
    n = 1024
    a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    return 2 * n**3 / _best_seconds(lambda: a @ b) / 1e9


def _measure_bandwidth() -> float:
    data = np.ones(16 << 20, np.float32)
    return data.nbytes / _best_seconds(data.sum) / 1e9
