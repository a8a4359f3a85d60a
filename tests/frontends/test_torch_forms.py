"""Unusual torch modules: what they return, how they are passed, what they change."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers.utils import ModelOutput

from tersor.errors import TersorError, Unsupported
from tersor.frontends import load_model
from tersor.frontends.torch import import_exported, import_module
from tersor.ir import Graph
from tersor.ops.evaluate import evaluate

X = torch.arange(12.0).reshape(3, 4) / 8
Tensor = torch.Tensor
# A few products of float32 of magnitude 1, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Returns(nn.Module):
    """Returns a function of its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def refused(module: nn.Module, *examples: Any, **options: Any) -> str:
    with pytest.raises(TersorError) as error:
        import_module(module, examples, **options)
    assert type(error.value) is Unsupported
    assert "\n" not in str(error.value)
    return str(error.value)


def outputs(graph: Graph, **feeds: Tensor) -> dict[str, np.ndarray]:
    return evaluate(graph, {name: x.numpy() for name, x in feeds.items()})


# -- what is returned ------------------------------------------------------------------------------


@dataclasses.dataclass
class Plain:
    logits: Tensor
    hidden: Tensor | None = None
    scores: Any = None


@dataclasses.dataclass
class Output(ModelOutput):  # type: ignore[misc]
    logits: Any = None
    hidden: Any = None
    scores: Any = None


class Fields(NamedTuple):
    logits: Tensor
    hidden: Tensor | None
    scores: Tensor


class Own(dict[str, Any]):
    pass


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda a, b: Plain(a, None, b), ["logits", "scores"]),
        (
            lambda a, b: Plain(a, None, [b, None, Plain(b)]),
            ["logits", "scores_0", "scores_2_logits"],
        ),
        (lambda a, b: Output(a, None, b), ["logits", "scores"]),
        (lambda a, b: Fields(a, None, b), ["logits", "scores"]),
        (lambda a, b: Own(logits=a, hidden=None, scores=b), ["logits", "scores"]),
        (lambda a, b: SimpleNamespace(logits=a, hidden=None, scores=b), ["logits", "scores"]),
        (lambda a, b: collections.OrderedDict(b=a, a=None, c=b), ["b", "c"]),
        (lambda a, b: (a, None, b), ["output_0", "output_2"]),
        (lambda a, b: (None, (a, None, [None, b])), ["output_1_0", "output_1_2_1"]),
        (lambda a, b: [{"x": a, "y": None}, Plain(b)], ["output_0_x", "output_1_logits"]),
    ],
)
def test_outputs_keep_their_names_if_others_are_none(make: Any, names: list[str]) -> None:
    module = Returns(lambda x: make(x + 1, x * 2))
    graph = import_module(module, X)
    assert graph.output_names == names
    results = outputs(graph, x=X)
    assert list(results) == names
    np.testing.assert_array_equal(results[names[0]], (X + 1).numpy())
    np.testing.assert_array_equal(results[names[-1]], (X * 2).numpy())
    assert "forward" not in module.__dict__


def test_output_names_for_all_results_or_only_for_outputs() -> None:
    module = Returns(lambda x: (x + 1, None, x * 2))
    for names in (["a", "none", "c"], ["a", "c"]):
        results = outputs(import_module(module, X, output_names=names), x=X)
        assert list(results) == ["a", "c"]
        np.testing.assert_array_equal(results["c"], (X * 2).numpy())
    program = torch.export.export(module, (X,))
    assert import_exported(program).output_names == ["output_0", "output_2"]


def test_a_module_without_outputs_is_refused() -> None:
    assert refused(Returns(lambda x: (None, None)), X) == "the module returns no tensor"


def test_an_unknown_container_is_refused_by_its_class() -> None:
    class Unknown:
        pass

    class OwnCache:
        pass

    assert refused(Returns(lambda x: (x, Unknown())), X) == (
        "the module returns a Unknown, whose tensors are unknown: wrap it in one that returns tensors"
    )
    assert refused(Returns(lambda x: (x, OwnCache())), X).endswith(
        "wrap it in one that returns tensors, or set config.use_cache to False"
    )


# -- examples of size 1 ----------------------------------------------------------------------------


class Two(nn.Module):
    def forward(self, ids: Tensor, states: list[Tensor]) -> Tensor:
        return torch.nn.functional.embedding(ids, torch.eye(7)).sum(1) + states[0].sum(0)


@pytest.mark.parametrize("size", [0, 1])
def test_dims_of_size_1_in_examples_are_dynamic(size: int) -> None:
    examples = {"ids": torch.full((size, 1), 6), "states": [torch.ones(size, 7)]}
    shapes = {"ids": {0: "batch", 1: "length"}, "states": [{0: "rows"}]}
    graph = import_module(Two(), examples, dynamic_shapes=shapes)
    assert [repr(v) for v in graph.inputs] == [
        "%ids: i64[batch, length]",
        "%states_0: f32[rows, 7]",
    ]
    for batch, length, rows in ((1, 1, 1), (3, 2, 5)):
        ids, state = torch.randint(7, (batch, length)), torch.randn(rows, 7)
        with torch.no_grad():
            expected = Two()(ids, [state]).numpy()
        (got,) = outputs(graph, ids=ids, states_0=state).values()
        np.testing.assert_allclose(got, expected, **CLOSE)


@pytest.mark.parametrize("dim", [torch.export.Dim("batch"), torch.export.Dim.AUTO])
def test_torchs_own_dims_are_dynamic(dim: Any) -> None:
    graph = import_module(nn.Linear(4, 2), torch.ones(1, 4), dynamic_shapes={"input": {0: dim}})
    assert graph.inputs[0].tensor.dims is not None
    assert not isinstance(graph.inputs[0].tensor.dims[0], int)


def test_an_unnamed_dim_of_size_1_is_static() -> None:
    graph = import_module(nn.Linear(1, 2), torch.ones(1, 1), dynamic_shapes={"input": {0: "batch"}})
    assert repr(graph.inputs[0]) == "%input: f32[batch, 1]"


def test_a_named_dim_that_must_be_1_is_refused_with_the_reason() -> None:
    message = refused(
        Returns(lambda x: x.reshape(1, 4)), torch.ones(1, 4), dynamic_shapes={"x": {0: "batch"}}
    )
    assert message.startswith(
        "dim 0 of x, named 'batch', cannot vary: torch treats size 1 in the examples as static, and with size "
        "2 the module fails (shape '[1, 4]' is invalid"
    )
    assert message.endswith("): give examples with other sizes")


# -- what is changed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: x.t().mul_(2),
        lambda x: x.__setitem__((slice(None), 0), 0.0),
    ],
)
def test_a_change_of_an_input_is_refused_with_advice(change: Any) -> None:
    def forward(x: Tensor) -> Tensor:
        change(x)
        return x * 2

    assert refused(Returns(forward), X.clone()) == (
        "the module changes its input 'x' in place, which a graph cannot: change a copy (x = x.clone()), "
        "and return it if it is needed"
    )
    # The advice works.
    advised = Returns(lambda x: forward(x.clone()))
    (got,) = outputs(import_module(advised, X), x=X).values()
    np.testing.assert_array_equal(got, forward(X.clone()).numpy())


# -- weights that are computed ---------------------------------------------------------------------


@pytest.mark.parametrize("map", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 6), (6, 4)])
def test_orthogonal_weights_are_constants(map: str, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = parametrizations.orthogonal(nn.Linear(*sizes), orthogonal_map=map).eval()
    x = torch.randn(3, sizes[0])
    graph = import_module(module, x)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(outputs(graph, input=x)["output_0"], expected, **CLOSE)


def test_a_conjugate_transpose_of_an_input() -> None:
    graph = import_module(Returns(lambda x: (x.mH @ x, x.H, x.mH)), X)
    results = outputs(graph, x=X)
    np.testing.assert_allclose(results["output_0"], (X.T @ X).numpy(), **CLOSE)
    for name in ("output_1", "output_2"):
        np.testing.assert_array_equal(results[name], X.T.numpy())


def test_an_op_without_a_converter_is_refused_if_it_depends_on_inputs() -> None:
    message = refused(Returns(lambda x: torch.linalg.matrix_exp(x)), torch.eye(3))
    assert message.startswith("aten.linalg_matrix_exp.default %linalg_matrix_exp: no conversion")


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm1d, (2, 3, 4)), (nn.BatchNorm2d, (2, 3, 4, 5))])  # fmt: skip
def test_batch_norm_without_running_statistics(norm: Any, shape: Any, affine: bool) -> None:
    torch.manual_seed(0)
    module = norm(3, track_running_stats=False, affine=affine, eps=1e-3).eval()
    if affine:
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    graph = import_module(module, torch.randn(shape), dynamic_shapes={"input": {0: "batch"}})
    x = torch.randn(7, *shape[1:])
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(outputs(graph, input=x)["output_0"], expected, **CLOSE)


# -- TorchScript -----------------------------------------------------------------------------------

WHY = (
    "is TorchScript, a compiled program that torch.export cannot trace: give the original module, or an ONNX "
    "export of it"
)


@pytest.fixture(scope="module")
def scripted() -> Any:
    return torch.jit.trace(nn.Linear(4, 2), X)


def test_torchscript_modules_are_refused_with_the_reason(scripted: Any) -> None:
    assert refused(scripted, X) == f"the module {WHY}"
    assert refused(nn.Sequential(nn.ReLU(), scripted), X) == f"1 {WHY}"


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ["m.pt", "m.jit", "m.onnx"])
def test_torchscript_files_are_refused_with_the_reason(
    scripted: Any, tmp_path: Path, name: str, trust: bool
) -> None:
    path = tmp_path / name
    torch.jit.save(scripted, path)
    with pytest.raises(Unsupported) as error:
        load_model(path, example_inputs=[X], trust=trust)
    assert str(error.value) == f"{path} {WHY}"
