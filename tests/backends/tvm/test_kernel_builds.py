"""Kernels compile for every kind of processor, whether or not it is this one."""

from __future__ import annotations

from pathlib import Path

import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.kernels import attention, embedding, linear  # noqa: E402
from tersor.backends.tvm.kernels.attention_spec import Attention  # noqa: E402
from tersor.backends.tvm.kernels.embedding import EmbeddingNorm, Table  # noqa: E402
from tersor.backends.tvm.kernels.emit import Isa  # noqa: E402
from tersor.backends.tvm.kernels.linear_spec import Linear  # noqa: E402
from tersor.backends.tvm.pipeline import TIR_PIPELINE, tvm_target  # noqa: E402
from tersor.target import ISA_LEVELS  # noqa: E402

# Other levels have the kernels of one of these; the baseline runs in other tests on every machine.
LEVELS = ("avx2", "avx512", "avx512_vnni", "amx_int8", "neon")
ELF = {"x86_64": 62, "aarch64": 183}  # The machine field of an ELF header.


@pytest.mark.parametrize("level", LEVELS)
def test_every_kind_of_kernel_builds(level: str, tmp_path: Path) -> None:
    """To an object file, which is neither linked nor run."""
    features = ISA_LEVELS[level]
    machine = "aarch64" if "neon" in features else "x86_64"
    isa = Isa.of(features, 2)
    dtype = "bfloat16" if isa.bfloat16 else "float32"
    specs = [
        (linear.kernel, Linear(16, 16, quantized=True, result=dtype)),
        (
            attention.kernel,
            Attention(2, 2, 32, 32, 0.25, dtype, "packed", mask="bool", axes="b11k"),
        ),
        (attention.kernel, Attention(2, 1, 8, 8, 0.25, mask="float32", axes="qk", causal=True)),
        (embedding.kernel, EmbeddingNorm(16, 1e-5, (Table(9, True, "int64", True, True),))),
    ]
    module = tvm.IRModule({spec.name: make(spec, isa) for make, spec in specs})
    built = tvm.compile(module, tvm_target(features, 2, machine), tir_pipeline=TIR_PIPELINE)
    path = tmp_path / "kernels.o"
    built.mod.write_to_file(str(path))
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == ELF[machine]
