"""Builds a graph: lowers, compiles and links it to a shared library, with the weights in another file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Literal

import tvm

from tersor.backends.tvm import cuda
from tersor.backends.tvm.contrib import expand
from tersor.backends.tvm.fuse import fuse
from tersor.backends.tvm.half import halve
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.library import ALIGNMENT, Function, describe_graph, pack
from tersor.backends.tvm.link import find_compiler, linked
from tersor.backends.tvm.lowering import Rule
from tersor.backends.tvm.module import Lowered, lower_all
from tersor.backends.tvm.ops import RULES, fused
from tersor.backends.tvm.options import Choice, sizes_text
from tersor.backends.tvm.pipeline import compile_module, tvm_target
from tersor.backends.tvm.sizes import name_sizes
from tersor.built import Built, Split
from tersor.errors import InvalidGraph, InvalidOption, Unsupported
from tersor.ir import Graph
from tersor.ir.copy import specialize
from tersor.pipeline import legality
from tersor.pipeline.report import Decoded
from tersor.target import Target, usable_cores

_SHARE_ALL_CORES = -3  # TVM's mode of a thread pool in which no thread is bound to a core.


def build(
    graph: Graph, choice: Choice | None = None, decoded: list[Decoded] | None = None
) -> Built:
    """The library of ``graph`` for the target in ``choice`` (by default this machine), and its weights; equal
    graphs give equal bytes.

    Raises:
        Unsupported: nodes that have no lowering, another kind of processor than this, or no compiler.
        InvalidOption: a bucket that the model cannot have.
    """
    choice = choice or Choice.of(Target.host())
    arch = cuda.arch_of(choice.features)
    compiler = find_compiler()
    lowered = lower_for(graph, choice)
    _limit_threads(choice.cores)
    if arch:
        executable = cuda.compile_for_gpu(lowered.module, arch)
    else:
        target = tvm_target(choice.features, choice.cores, _machine(choice))
        executable = compile_module(lowered.module, target)
    if decoded is not None:
        decoded += lowered.decoded
    weights = lowered.weights(ALIGNMENT)
    functions = [
        Function(sizes, tuple(places))
        for sizes, places in zip(((), *choice.buckets), lowered.parameters, strict=True)
    ]
    description = describe_graph(
        graph, choice.features, weights, lowered.arrays, lowered.derived, functions
    )
    data = pack(linked(executable, compiler), description)
    return data if weights is None else Split(data, weights)


def lower_for(graph: Graph, choice: Choice) -> Lowered:
    """The module to compile for ``graph``, and the arrays that its library stores.

    Raises:
        Unsupported, InvalidOption: as :func:`build`.
    """
    graphs = [graph, *(_bucket(graph, sizes) for sizes in choice.buckets)]
    if cuda.arch_of(choice.features):
        return _lower([halve(name_sizes(expand(g))) for g in graphs], cuda.GPU_RULES)
    isa = Isa.of(choice.features, choice.cores)
    rules = {**RULES, **fused.rules(isa, choice.grain_of())}
    return _lower([fuse(name_sizes(expand(g)), isa) for g in graphs], rules)


def _lower(graphs: Sequence[Graph], rules: dict[str, Rule]) -> Lowered:
    for graph in graphs:
        legality.check("fusion", graph)
    return lower_all(graphs, rules)


def _bucket(graph: Graph, sizes: Sequence[tuple[str, int]]) -> Graph:
    """The graph at these sizes.

    Raises:
        InvalidOption: an op refuses them.
    """
    try:
        return specialize(graph, dict(sizes))
    except InvalidGraph as error:
        raise InvalidOption(f"no bucket {sizes_text(sizes)}: {error}") from None


def _machine(choice: Choice) -> Literal["x86_64", "aarch64"]:
    """The architecture in ``choice``, which must be this machine's.

    Raises:
        Unsupported: another one, for which the C compiler here does not link.
    """
    wanted: Literal["x86_64", "aarch64"] = "aarch64" if "neon" in choice.features else "x86_64"
    kinds = {"amd64": "x86_64", "arm64": "aarch64"}
    here = platform.machine().lower()
    if kinds.get(here, here) != wanted:
        raise Unsupported(f"runtime tvm links for {here} here, and cannot build for {wanted}")
    return wanted


def _limit_threads(count: int) -> None:
    """Sizes TVM's thread pool, which runs code during compilation: by default it would use half of the cores,
    for good, and pin its caller to them."""
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, count, [str(core) for core in usable_cores()])
