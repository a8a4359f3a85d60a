"""Every ISA level that a target can ask for is compiled for, and run where this machine has it."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tvm import relax, tirx  # noqa: E402

from tersor.backends.tvm.pipeline import compile_module, tvm_target, vector_bits  # noqa: E402
from tersor.target import ISA_LEVELS, Target  # noqa: E402

ARM = [name for name in ISA_LEVELS if name.startswith("neon")]
X86 = [name for name in ISA_LEVELS if name not in ARM]
K, N = 70, 45  # Neither is a multiple of a vector.
# What the widest registers are called, and what there are none of.
REGISTERS = {"avx2": ("ymm", "zmm"), "avx_vnni": ("ymm", "zmm")}
X86_64, AARCH64 = 62, 183  # Machines in the head of an ELF file.


@cache
def module() -> Any:
    """softmax(relu(x w) + tanh(b)) of any number of rows."""
    rows = tirx.Var("rows", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, K), "float32"))
    w = relax.Var("w", relax.TensorType((K, N), "float32"))
    b = relax.Var("b", relax.TensorType((N,), "float32"))
    with builder.function("main", [x, w, b]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.matmul(x, w))))
            y = builder.emit(relax.op.add(y, builder.emit(relax.op.tanh(b))))
            y = builder.emit_output(builder.emit(relax.op.nn.softmax(y, -1)))
        builder.emit_func_output(y)
    return builder.finalize()


def meaning(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, w, b = (a.astype(np.float64) for a in (x, w, b))
    e = np.exp(np.maximum(x @ w, 0) + np.tanh(b))
    return e / e.sum(-1, keepdims=True)


def machine_of(executable: Any, folder: Path) -> int:
    """The machine that the compiled code is for, as its object file says."""
    [library] = executable.mod.imports
    library.write_to_file(str(folder / "code.o"))
    head = (folder / "code.o").read_bytes()[:20]
    assert head[:4] == b"\x7fELF"
    return int(struct.unpack_from("<H", head, 18)[0])


@pytest.mark.parametrize("isa", X86)
def test_x86(isa: str, tmp_path: Path) -> None:
    target = tvm_target(ISA_LEVELS[isa], 2)
    executable = compile_module(module(), target)
    assert machine_of(executable, tmp_path) == X86_64
    [library] = executable.mod.imports
    assembly = library.inspect_source("s")
    widest, none = REGISTERS.get(isa, ("zmm", "tmm"))
    assert f"%{widest}" in assembly and f"%{none}" not in assembly
    assert vector_bits(target) == {"ymm": 256, "zmm": 512}[widest]
    if not Target.parse(f"cpu:{isa}").is_host:
        return
    run = relax.VirtualMachine(executable, tvm.cpu())["main"]
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((K, N)), rng.standard_normal(N)
    for rows in (1, 3, 130):
        arrays = [a.astype(np.float32) for a in (rng.standard_normal((rows, K)), w, b)]
        got = run(*(tvm.runtime.tensor(a) for a in arrays)).numpy()
        # Logits of about 8 are off by some 1e-6, and so are probabilities, in proportion.
        np.testing.assert_allclose(got, meaning(*arrays), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("isa", ARM)
def test_arm(isa: str, tmp_path: Path) -> None:
    """A library needs a linker for that machine: up to the object file."""
    target = tvm_target(ISA_LEVELS[isa], 4, machine="aarch64")
    executable = compile_module(module(), target)
    assert machine_of(executable, tmp_path) == AARCH64
    assert vector_bits(target) == 128
    [library] = executable.mod.imports
    assert ".4s" in library.inspect_source("s")  # Four float32 in a register.
    assert target.attrs["feature.has_dotprod"] == (isa == "neon_dotprod")


def test_nothing_known() -> None:
    target = tvm_target((), 1)
    assert vector_bits(target) == 128
    [library] = compile_module(module(), target).mod.imports
    assembly = library.inspect_source("s")
    assert "%xmm" in assembly and "%ymm" not in assembly
