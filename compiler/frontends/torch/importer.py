"""torch modules and exported programs to IR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

import tersor.frontends.torch.converters  # noqa: F401  (registers the converters)
from tersor.errors import InvalidOption, Unsupported
from tersor.frontends.naming import unique
from tersor.frontends.torch.dtypes import array_of
from tersor.frontends.torch.folding import Folded
from tersor.frontends.torch.functionalize import prepare
from tersor.frontends.torch.lowering import Deferred, Lowering
from tersor.frontends.torch.names import input_names_of, output_names_of
from tersor.frontends.torch.trace import DimNames, trace
from tersor.ir import DType, Graph, Sym, Value
from tersor.ops import TABLE

Examples = Mapping[str, Any] | Sequence[Any] | Any


def import_module(
    module: Any,
    example_inputs: Examples,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of an ``nn.Module`` in evaluation mode.

    Args:
        module: the module, which is not changed; it is traced in evaluation mode.
        example_inputs: tensors or numpy arrays: a sequence of positional arguments of ``forward``, or a
            mapping of arguments by name; nested lists and dicts are flattened.
        dynamic_shapes: as for ``torch.export.export``, in the structure of the inputs; a dim may also be
            given as a name (``{"input_ids": {0: "batch", 1: "seq"}}``).
        input_names, output_names: in the order of the flattened inputs and outputs; by default, the parameter
            names of ``forward``, and the keys of what it returns or ``output_0`` ….

    Raises:
        InvalidOption: no examples, an input that is not a tensor, names that do not match.
        Unsupported: torch.export cannot trace it, or an op cannot be converted.
    """
    program, names = trace(module, example_inputs, dynamic_shapes)
    return _import(program, names, input_names, output_names)


def import_graph_module(
    module: torch.fx.GraphModule,
    example_inputs: Examples,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a ``torch.fx.GraphModule``, from ``symbolic_trace`` or an exported program; arguments and
    errors as for :func:`import_module`."""
    if not isinstance(module, torch.fx.GraphModule):
        raise InvalidOption(f"a {type(module).__name__} is not a torch.fx.GraphModule")
    return import_module(
        module,
        example_inputs,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
    )


def import_exported(
    program: torch.export.ExportedProgram,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a program of ``torch.export.export``; names as for :func:`import_module`.

    Raises:
        InvalidOption: names that do not match.
        Unsupported: an op cannot be converted, or the program changes its state.
    """
    if not isinstance(program, torch.export.ExportedProgram):
        raise InvalidOption(f"a {type(program).__name__} is not a torch.export.ExportedProgram")
    return _import(program, DimNames(), input_names, output_names)


def _import(
    program: Any,
    dim_names: DimNames,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Graph:
    with torch.no_grad():
        program = prepare(program)
        graph = TABLE.graph("main")
        lowering = Lowering(graph)
        values = _inputs(program, lowering, dim_names, input_names)
        results = lowering.run(program.graph_module, values, Folded(program))
        _outputs(program, lowering, results, output_names)
        lowering.finish()
    return graph


def _inputs(
    program: Any, lowering: Lowering, dim_names: DimNames, names: Sequence[str] | None
) -> dict[Any, Any]:
    """The values of placeholders: inputs (added first, so that they get their names), and weights, which are
    added as constants when they are read."""
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    users = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    own = input_names_of(program, [s.arg.name for s in users])
    tensors = [
        (name, placeholders[s.arg.name])
        for name, s in zip(own, users, strict=True)
        if isinstance(placeholders[s.arg.name].meta.get("val"), torch.Tensor)
    ]
    chosen = _chosen(names, [name for name, _ in tensors], "input")
    for own_name, node in tensors:
        _name_symbols(lowering, node.meta["val"], own_name, dim_names)
    for (_, node), name in zip(tensors, chosen, strict=True):
        for axis, torch_symbol in _symbols(node.meta["val"]):
            lowering.sizes.name_default(torch_symbol, f"{name}_dim{axis}")
    values: dict[Any, Any] = {}
    for (_, node), name in zip(tensors, chosen, strict=True):
        type = lowering.type_of(node.meta["val"])
        values[node] = value = lowering.graph.add_input(name, type)
        for axis, dim in enumerate(type.dims or ()):
            lowering.sizes.add_source(value, axis, dim)
    shared: dict[Any, Deferred] = {}
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if node not in values:
            values[node] = _weight(program, lowering, spec, shared)
    return values


def _name_symbols(lowering: Lowering, val: Any, own: str, names: DimNames) -> None:
    """Gives the symbols of an input's dims the user's names."""
    for axis, size in enumerate(map(_expression, val.shape)):
        if size.isdecimal():
            names.check_not_named(own, axis, int(size))
    for axis, torch_symbol in _symbols(val):
        if (given := names.name(own, axis)) is not None:
            lowering.sizes.name(torch_symbol, given)


def _symbols(val: Any) -> Iterator[tuple[int, str]]:
    """(axis, symbol) of a tensor's dims that are one symbol of torch."""
    for axis, size in enumerate(map(_expression, val.shape)):
        if size.isidentifier():
            yield axis, size


def _expression(size: Any) -> str:
    # A size that tracing specialized may still be a SymInt, whose expression is a number.
    return str(size if isinstance(size, int) else size.node.expr)


def _weight(program: Any, lowering: Lowering, spec: Any, shared: dict[Any, Deferred]) -> Any:
    if spec.kind is InputKind.USER_INPUT:
        return getattr(spec.arg, "value", None)
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise Unsupported(
            f"the program's input {spec.target or spec.arg.name} is of the unsupported kind "
            f"{spec.kind.name.lower()}"
        )
    stored = program.state_dict if spec.target in program.state_dict else program.constants
    tensor = stored[spec.target]
    key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if tensor.numel() == 0 or key not in shared:
        shared[key] = Deferred(
            lambda: lowering.constant(array_of(tensor, spec.target), name=spec.target)
        )
    return shared[key]


def _outputs(program: Any, lowering: Lowering, results: Any, names: Sequence[str] | None) -> None:
    """Sets the outputs: those results that are not None. ``names`` are those of the outputs, or of all
    results."""
    specs = program.graph_signature.output_specs
    for spec in specs:
        _check_no_mutation(spec)
    own = output_names_of(program, len(specs))
    present = [i for i, item in enumerate(results) if item is not None]
    if not present:
        raise Unsupported("the module returns no tensor")
    if names is not None and len(names) == len(specs):
        names = [list(names)[i] for i in present]
    outputs = [_output(lowering, results[i], own[i]) for i in present]
    defaults = unique(own[i] for i in present)
    lowering.graph.set_outputs(outputs, _chosen(names, defaults, "output"))


def _check_no_mutation(spec: Any) -> None:
    """Raises:
    Unsupported: an output of the program is the new value of an input or a buffer.
    """
    if spec.kind is OutputKind.USER_INPUT_MUTATION:
        raise Unsupported(
            f"the module changes its input {spec.target!r} in place, which a graph cannot: change a copy "
            f"({spec.target} = {spec.target}.clone()), and return it if it is needed"
        )
    if spec.kind is not OutputKind.USER_OUTPUT:
        raise Unsupported(
            f"the module changes its state {spec.target!r}, but a graph has none: make it an input and an "
            "output"
        )


def _output(lowering: Lowering, item: Any, label: str) -> Value:
    if isinstance(item, Value):
        return item
    if isinstance(item, (bool, int, float, Sym)):
        kinds: dict[type, DType] = {bool: DType.BOOL, float: DType.F32}
        return lowering.value(item, kinds.get(type(item), DType.I64))
    raise Unsupported(f"output {label} is a {type(item).__name__}, not a tensor")


def _chosen(names: Sequence[str] | None, own: list[str], kind: str) -> list[str]:
    if names is None:
        return own
    chosen = list(names)
    if len(chosen) != len(own):
        raise InvalidOption(f"{len(chosen)} {kind} names for {len(own)} {kind}s ({', '.join(own)})")
    if len(set(chosen)) < len(chosen) or not all(chosen):
        raise InvalidOption(f"{kind} names {chosen} must be distinct and not empty")
    return chosen
