"""From a Relax module to machine code: LLVM's target, and the passes in order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from tersor.backends.tvm.fastmath import fast_math
from tersor.backends.tvm.kernels.emit import KERNEL
from tersor.backends.tvm.loops import lower_loops
from tersor.backends.tvm.schedule import default_schedule
from tersor.backends.tvm.shapes import define_sizes_first, order_shape_stores
from tersor.backends.tvm.stack import small_on_stack

TIR_PIPELINE = "tersor"
OPAQUE = 8  # Relax's kind of an op that is fused with nothing.

# The first entry whose features are all available names the processor.
_X86: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"avx512f", "amx_int8"}), "sapphirerapids"),
    (frozenset({"avx512f", "avx512_vnni"}), "cascadelake"),
    (frozenset({"avx512f"}), "skylake-avx512"),
    (frozenset({"avx_vnni"}), "alderlake"),
    (frozenset({"avx2"}), "haswell"),
    (frozenset(), "x86-64"),
)
_NEON = {"neon": "+neon", "neon_dotprod": "+dotprod"}


def tvm_target(
    features: Collection[str], cores: int, machine: Literal["x86_64", "aarch64"] = "x86_64"
) -> tvm.target.Target:
    """The target of TVM for ISA features of :class:`tersor.target.Target`."""
    facts: dict[str, Any] = {"kind": "llvm", "num-cores": cores}
    if machine == "aarch64":
        facts["mtriple"] = "aarch64-linux-gnu"
        facts["mattr"] = [_NEON[f] for f in sorted(_NEON.keys() & set(features))] or ["+neon"]
    else:
        facts["mtriple"] = "x86_64-linux-gnu"
        facts["mcpu"] = next(cpu for needed, cpu in _X86 if needed <= set(features))
        if "avx512f" in features:
            # By default LLVM vectorizes to 256 bits on these processors.
            facts["mattr"] = ["-prefer-256-bit"]
        if facts["mcpu"] == "sapphirerapids":
            facts["mattr"].append("-avx512fp16")  # No feature of ours covers it.
    return tvm.target.Target(facts)


def vector_bits(target: tvm.target.Target) -> int:
    """The width of the target's vectors."""
    cpu = str(target.attrs.get("mcpu", ""))
    if cpu in ("", "x86-64"):
        return 128
    return 256 if cpu in ("haswell", "alderlake") else 512


def compile_module(module: tvm.IRModule, target: tvm.target.Target) -> Any:
    """The executable of a module's Relax functions and kernels."""
    return tvm.compile(
        module, target, relax_pipeline=relax_pipeline(target), tir_pipeline=TIR_PIPELINE
    )


def relax_pipeline(target: tvm.target.Target) -> tvm.transform.Pass:
    """The passes from Relax to calls of scheduled functions on planned memory."""
    return _with_stubs(
        [
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            _unfused_sizes,
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.RewriteDataflowReshape(),  # Looks at blocks: before they are scheduled.
            relax.transform.DeadCodeElimination(),
            default_schedule(vector_bits(target)),
            *planned(),
        ]
    )


def planned() -> list[tvm.transform.Pass]:
    """The passes from scheduled functions in dataflow to calls on planned memory, for any device."""
    return [
        relax.transform.ToNonDataflow(),
        define_sizes_first,
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        order_shape_stores,
        relax.transform.AttachGlobalSymbol(),
    ]


@tvm.transform.module_pass(opt_level=0)
def _unfused_sizes(module: tvm.IRModule, context: object) -> tvm.IRModule:
    """Functions that take a size as an argument (a dim ``past + sequence`` defines neither of the two) are
    fused with nothing: FuseTIR defines such a size twice. Nor are functions whose results have sizes that the
    run computes and no operand has: fusion does not see what defines them, and calls them before that."""
    computed = {
        name
        for function in module.functions.values()
        if isinstance(function, relax.Function)
        for name in _with_computed_sizes(function)
    }
    opaque = {
        name: func.with_attr("op_pattern", OPAQUE)
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc)
        and (
            name in computed
            or any(isinstance(parameter.ty, tvm.ir.PrimType) for parameter in func.params)
        )
    }
    return _updated(module, opaque)


def _with_computed_sizes(function: relax.Function) -> list[tvm.ir.GlobalVar]:
    """Functions that are called for a result with sizes that neither its operands nor ``function``'s
    parameters have."""
    sizes, call_tir = relax.analysis.tir_vars_in_type, tvm.ir.Op.get("relax.call_tir")
    given = {size for parameter in function.params for size in sizes(parameter.ty)}
    called: list[tvm.ir.GlobalVar] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and expr.op == call_tir:
            callee, operands = expr.args[:2]
            if set(sizes(expr.ty_args[0])) - given - set(sizes(operands.ty)):
                called.append(callee)

    relax.analysis.post_order_visit(function, visit)
    return called


def _with_stubs(passes: list[tvm.transform.Pass]) -> tvm.transform.Pass:
    """Passes run with our kernels replaced by stubs, which are fused with nothing.  Some passes would
    look for the blocks of Relax's own functions."""
    sequence = tvm.transform.Sequential(passes)

    @tvm.transform.module_pass(opt_level=0)
    def apply(module: tvm.IRModule, context: object) -> tvm.IRModule:
        kernels = _kernels(module)
        module = sequence(_updated(module, {name: _stub(f) for name, f in kernels.items()}))
        kept = set(module.get_global_vars())
        return _updated(module, {name: f for name, f in kernels.items() if name in kept})

    return apply


def _stub(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    block = s_tir.SBlock([], [], [], "root", tirx.Evaluate(0))
    body = s_tir.SBlockRealize([], True, block)
    return kernel.with_body(body).with_attr("op_pattern", OPAQUE)


def _updated(module: tvm.IRModule, functions: dict[Any, Any]) -> tvm.IRModule:
    module = module.clone()
    module.update(tvm.IRModule(functions))
    return module


def _without_kernels(passes: list[tvm.transform.Pass]) -> tvm.transform.Pass:
    """Passes that skip our kernels, which are final already: simplifying would substitute each bound value
    into all of its readers, which blows up their size."""
    sequence = tvm.transform.Sequential(passes)

    @tvm.transform.module_pass(opt_level=0)
    def apply(module: tvm.IRModule, context: object) -> tvm.IRModule:
        kernels, others = _kernels(module), module.clone()
        for name in kernels:
            del others[name]
        return _updated(sequence(others), kernels)

    return apply


def _kernels(module: tvm.IRModule) -> dict[Any, tirx.PrimFunc]:
    return {
        name: func
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and func.attrs and KERNEL in func.attrs
    }


def _lowering() -> tuple[tvm.transform.Pass, Any, Any]:
    """TVM's passes for the CPU, with ours where loops are final (and no vectors yet), and where
    vectors are."""
    passes = [
        _without_kernels(
            [
                s_tir.transform.CanonicalizeLoop(),
                s_tir.transform.LowerInitBlock(),
                s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
                s_tir.transform.ConvertBlocksToOpaque(),
                s_tir.transform.CompactBufferAllocation(),
                s_tir.transform.LowerMatchBuffer(),
                s_tir.transform.StmtSimplify(),
                s_tir.transform.LowerOpaqueBlock(),
            ]
        ),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        _without_kernels(
            [
                lower_loops,
                tirx.transform.ConvertSSA(),  # Loops that were copied share variables.
                tirx.transform.StmtSimplify(),
                tirx.transform.VectorizeLoop(True),
                tirx.transform.StorageRewrite(),
                s_tir.transform.HoistIfThenElse(),
                tirx.transform.UnrollLoop(),
                s_tir.transform.RenormalizeSplitPattern(),
                tirx.transform.StmtSimplify(),
                tirx.transform.RemoveNoOp(),
                s_tir.transform.RewriteUnsafeSelect(),
                tirx.transform.CommonSubexprElim(),
            ]
        ),
        small_on_stack,
        tirx.transform.FP8ComputeLegalize(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        fast_math,
    ]
    return (
        tvm.transform.Sequential(passes),
        tirx.compilation_pipeline.finalize_host_passes,
        tirx.compilation_pipeline.finalize_device_passes,
    )


# TVM would scalarize these, although each is one vector instruction.
for _name in ("nearbyint", "isnan"):
    tvm.ir.register_op_attr(f"tirx.{_name}", "TVectorizable", True)
tirx.compilation_pipeline.register_tir_pipeline(TIR_PIPELINE, _lowering)
# Python passes are called through C++, where Ctrl-C would become a RuntimeError without a message.
tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)
