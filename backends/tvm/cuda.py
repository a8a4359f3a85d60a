"""CUDA: graphs under TVM's GPU schedules, compiled ahead of time by nvcc or NVRTC.

A graph is lowered by the generic rules, in float16 (:mod:`tersor.backends.tvm.half`); products of matrices
use tensor cores where all known sizes are above 64.  All but the computation of sizes runs on the device.

TVM's library contains CUDA source, to be compiled where it is loaded; here it is replaced by machine code
encoded as text, which is decoded on loading.  So running a library needs no compiler.
"""

from __future__ import annotations

import base64
import importlib.util
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import dlight
from tvm.support import nvcc

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.backends.tvm.ops import RULES, control, recurrent, sequence
from tersor.backends.tvm.pipeline import planned
from tersor.errors import InvalidModel, Unsupported, one_line
from tersor.ir import Node

_MARK = "// machine code: "
_one_at_a_time = threading.Lock()  # The callback is global in TVM.
_SCHEDULES = (
    dlight.gpu.Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
    dlight.gpu.Fallback(),
)
# Checks reductions across threads: TVM supports a few combiners, and fails late for others.
_FOLDS = tvm.transform.Sequential(
    [s_tir.transform.CanonicalizeLoop(), s_tir.transform.LowerCrossThreadReduction()]
)
# From this version on, TVM 0.27 crashes on tensor cores: its copies of functions are shallow.
_BROKEN_FFI = (0, 1, 15)


def arch_of(features: Sequence[str]) -> str | None:
    """The architecture among features of a target, such as ``sm_90``; None where it is no GPU."""
    return next((f for f in features if f.startswith("sm_")), None)


def check_device(arch: str) -> None:
    """Checks that there is a device for code of ``arch``.

    Raises:
        InvalidModel: there is none.
    """
    device = tvm.cuda(0)
    if not device.exist:
        raise InvalidModel(f"it needs a CUDA device of {arch}; there is none here")
    here = str(device.compute_version)
    is_for_one = arch[-1].isalpha()  # sm_90a is for sm_90 and no later one.
    fits = _number(here) == _number(arch) if is_for_one else _number(here) >= _number(arch)
    if not fits:
        raise InvalidModel(f"it needs a CUDA device of {arch}; the one here has {here}")


def _number(text: str) -> int:
    """Of ``sm_90`` and of ``9.0``: 90."""
    return int(re.sub(r"\D", "", text))


# -- ops without a lowering for CUDA ---------------------------------------------------------------


def _refusing(reason: str) -> Rule:
    def refuse(lowering: Lowering, node: Node) -> Sequence[Any]:
        raise Refused(reason)

    return refuse


GPU_RULES: dict[str, Rule] = {
    **RULES,
    **dict.fromkeys(
        recurrent.RULES, _refusing("its kernel is written for processors, not for CUDA")
    ),
    **dict.fromkeys(
        [*control.RULES, *sequence.RULES], _refusing("control flow is not for CUDA yet")
    ),
    **dict.fromkeys(
        ("ScatterElements", "ScatterND", "TensorScatter"),
        _refusing("updates come one after the other, which no schedule for CUDA takes"),
    ),
    "TopK": _refusing("TVM sorts on the processor only"),
}


# -- compiling -------------------------------------------------------------------------------------


def check_tools() -> str:
    """The compiler of CUDA, ``nvcc`` or ``nvrtc``.

    Raises:
        Unsupported: there is none, or TVM would crash.
    """
    if tuple(map(int, re.findall(r"\d+", tvm_ffi.__version__)[:3])) >= _BROKEN_FFI:
        raise Unsupported(
            f"TVM {tvm.__version__} crashes on CUDA's tensor cores with apache-tvm-ffi "
            f"{tvm_ffi.__version__}: install 'apache-tvm-ffi<0.1.15'"
        )
    if shutil.which("nvcc"):
        return "nvcc"
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return "nvrtc"
    raise Unsupported(
        "building for CUDA takes nvcc or NVRTC, and neither is there: install the CUDA toolkit, or the "
        "package cuda-bindings"
    )


def gpu_target(arch: str) -> tvm.target.Target:
    """TVM's target; host code runs on any processor of this one's family."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(here := platform.machine().lower(), here)
    host = {"kind": "llvm", "mtriple": f"{machine}-linux-gnu"}
    return tvm.target.Target({"kind": "cuda", "arch": arch, "host": host})


def compile_for_gpu(module: tvm.IRModule, arch: str) -> Any:
    """The executable of a lowered module, with machine code for ``arch``.

    Raises:
        Unsupported: no compiler, or a function that no schedule fits.
    """
    compiler, target = check_tools(), gpu_target(arch)

    def compiled(source: str, target: tvm.target.Target) -> str:
        return _MARK + base64.b64encode(_machine_code(source, target, compiler)).decode()

    with _replacing_sources(compiled), target:
        try:
            return tvm.compile(module, target, relax_pipeline=_pipeline(), tir_pipeline="s_tir")
        except Unsupported:
            raise
        except Exception as error:
            raise Unsupported(
                f"TVM does not compile it for {arch}: {one_line(error, 300)}"
            ) from error


def _machine_code(source: str, target: tvm.target.Target, compiler: str) -> bytes:
    """PTX, which later devices run too; from nvcc, with native code for ``target``."""
    arch = str(target.attrs["arch"])
    virtual = arch.replace("sm_", "compute_")
    kind: str = "ptx"
    wanted: str | list[str] = virtual
    if compiler == "nvcc":
        kind, wanted = "fatbin", ["-gencode", f"arch={virtual},code=[{arch},{virtual}]"]
    with target:
        return bytes(nvcc.compile_cuda(source, kind, wanted, compiler=compiler))


_compile_source = tvm.get_global_func("tvm_callback_cuda_compile")


@tvm_ffi.register_global_func("tvm_callback_cuda_compile", override=True)
def read_machine_code(source: str) -> Any:
    """TVM's callback to compile a source; decodes the machine code that :func:`compile_for_gpu` put in its
    place."""
    if not source.startswith(_MARK):
        return _compile_source(source)
    return base64.b64decode(source.removeprefix(_MARK))


@contextmanager
def _replacing_sources(replace: Callable[[str, tvm.target.Target], str]) -> Iterator[None]:
    """A context in which TVM replaces sources in its modules by ``replace(source, target)``."""
    name = "tvm_callback_cuda_postproc"
    with _one_at_a_time:
        tvm_ffi.register_global_func(name, replace, override=True)
        try:
            yield
        finally:
            tvm_ffi.registry.remove_global_func(name)


def _pipeline() -> tvm.transform.Pass:
    """The passes from Relax to calls of scheduled functions on planned memory."""
    return tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            schedule,
            relax.transform.RewriteDataflowReshape(),
            *planned(),
        ]
    )


@tvm.transform.module_pass(opt_level=0)
def schedule(module: tvm.IRModule, context: object) -> tvm.IRModule:
    """Schedules every function by the first of TVM's rules that fits.

    Raises:
        Unsupported: none does.
    """
    scheduled = {
        name: _scheduled(name.name_hint, func)
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    module = module.clone()
    module.update(tvm.IRModule(scheduled))
    return module


def _scheduled(name: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
    target = tvm.target.Target.current()
    for rule in _SCHEDULES:
        try:
            scheduled = rule.apply(func, target, False)
            if scheduled is not None:
                _FOLDS(scheduled.mod)
        except Exception:
            continue  # A rule that does not fit raises; the next one is at worst slower.
        if scheduled is not None:
            return scheduled.mod["main"].with_attr("tirx.is_scheduled", True)
    raise Unsupported(f"TVM has no schedule for CUDA for {name}")
