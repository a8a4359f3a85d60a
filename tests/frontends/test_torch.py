"""The torch frontend: names, kinds of input, model directories, scopes, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tersor.errors import InvalidModel, InvalidOption, TersorError, Unsupported
from tersor.frontends.onnx import export_model
from tersor.frontends.torch import (
    import_exported,
    import_graph_module,
    import_module,
    load_pretrained,
)
from tersor.ir import Graph
from tersor.ops.evaluate import evaluate

BATCH = {"x": {0: "batch"}}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.first(x)))  # type: ignore[no-any-return]


class Several(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": left + right, "product": left * right}


@pytest.fixture
def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


def same(graph: Graph, module: nn.Module, *inputs: torch.Tensor) -> None:
    """The op table's evaluation and ONNX Runtime compute what the module computes in evaluation mode."""
    with torch.no_grad():
        expected = module(*inputs).numpy()
    feeds = dict(zip((v.name for v in graph.inputs), (x.numpy() for x in inputs), strict=True))
    session = onnxruntime.InferenceSession(
        export_model(lowered(graph)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for got in (next(iter(evaluate(graph, feeds).values())), session.run(None, feeds)[0]):
        np.testing.assert_allclose(
            got, expected, atol=1e-6
        )  # Sums of eight float32 of magnitude 1.


def lowered(graph: Graph) -> Graph:
    from tersor.backends.ort.lower import lower

    return lower(graph)


def refused(kind: type[TersorError], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TersorError) as error:
        import_module(*args, **kwargs)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


# -- names -----------------------------------------------------------------------------------------


def test_inputs_have_the_names_of_forwards_parameters(mlp: Mlp) -> None:
    graph = import_module(mlp, torch.ones(2, 4), dynamic_shapes=BATCH)
    assert [repr(v) for v in graph.inputs] == ["%x: f32[batch, 4]"]
    assert graph.output_names == ["output_0"]
    same(graph, mlp, torch.randn(5, 4))


def test_outputs_have_the_names_of_their_keys() -> None:
    graph = import_module(Several(), (torch.ones(2), torch.ones(2)))
    assert [v.name for v in graph.inputs] == ["left", "right"]
    assert graph.output_names == ["total", "product"]


@pytest.mark.parametrize("name", ["linear", "gelu", "first.weight", "const", "tersor_linear"])
def test_names_may_be_those_of_internal_values(mlp: Mlp, name: str) -> None:
    graph = import_module(mlp, torch.ones(2, 4), input_names=[name], output_names=["linear_1"])
    assert [v.name for v in graph.inputs] == [name]
    assert graph.output_names == ["linear_1"]
    same(graph, mlp, torch.randn(2, 4))


def test_an_output_may_have_the_name_of_an_input(mlp: Mlp) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x + 1
            return y, y

    graph = import_module(Twice(), torch.ones(2), output_names=["add", "again"])
    feeds = {"x": np.zeros(2, np.float32)}
    session = onnxruntime.InferenceSession(
        export_model(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert [o.name for o in session.get_outputs()] == ["add", "again"]
    for got in session.run(None, feeds):
        np.testing.assert_array_equal(got, [1, 1])


def test_nested_inputs_are_flattened_under_their_path() -> None:
    class Nested(nn.Module):
        def forward(
            self, batch: dict[str, torch.Tensor], states: list[torch.Tensor]
        ) -> torch.Tensor:
            return batch["ids"] + states[0] * states[1]

    examples = {"batch": {"ids": torch.ones(2)}, "states": [torch.ones(2), torch.ones(2)]}
    graph = import_module(Nested(), examples)
    assert [v.name for v in graph.inputs] == ["batch_ids", "states_0", "states_1"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"output_names": ["a", "b"]}, "2 output names for 1 outputs (output_0)"),
        ({"input_names": []}, "0 input names for 1 inputs (x)"),
        ({"output_names": [""]}, "output names [''] must be distinct and not empty"),
    ],
)
def test_names_that_do_not_match_are_refused(mlp: Mlp, names: dict[str, Any], message: str) -> None:
    assert refused(InvalidOption, mlp, torch.ones(2, 4), **names) == message


def test_equal_names_are_refused() -> None:
    examples = (torch.ones(2), torch.ones(2))
    assert refused(InvalidOption, Several(), examples, input_names=["a", "a"]) == (
        "input names ['a', 'a'] must be distinct and not empty"
    )


# -- kinds of models -------------------------------------------------------------------------------


def test_exported_programs_are_imported(mlp: Mlp) -> None:
    shapes = {"x": {0: torch.export.Dim("rows")}}
    program = torch.export.export(mlp, (torch.ones(2, 4),), dynamic_shapes=shapes)
    graph = import_exported(program, output_names=["y"])
    assert graph.inputs[0].tensor.dims is not None and graph.inputs[0].tensor.dims[1] == 4
    assert graph.output_names == ["y"]
    same(graph, mlp, torch.randn(7, 4))


def test_graph_modules_are_imported(mlp: Mlp) -> None:
    traced = torch.fx.symbolic_trace(mlp)
    graph = import_graph_module(traced, torch.ones(2, 4), dynamic_shapes=BATCH)
    same(graph, mlp, torch.randn(3, 4))


def test_the_module_of_an_exported_program_is_imported(mlp: Mlp) -> None:
    program = torch.export.export(mlp, (torch.ones(2, 4),))
    graph = import_graph_module(program.module(), torch.ones(2, 4))
    same(graph, mlp, torch.randn(2, 4))


def test_other_objects_are_refused(mlp: Mlp) -> None:
    assert refused(InvalidOption, 3, torch.ones(2)) == "a int is not a torch.nn.Module"
    with pytest.raises(InvalidOption, match=r"a Mlp is not a torch\.fx\.GraphModule"):
        import_graph_module(mlp, torch.ones(2, 4))
    with pytest.raises(InvalidOption, match=r"a Mlp is not a torch\.export\.ExportedProgram"):
        import_exported(mlp)  # type: ignore[arg-type]


def test_arrays_are_accepted_as_examples(mlp: Mlp) -> None:
    graph = import_module(mlp, {"x": np.ones((2, 4), np.float32)})
    same(graph, mlp, torch.randn(2, 4))


# -- what the module is left as --------------------------------------------------------------------


def test_a_module_in_training_mode_is_traced_for_inference_and_left_in_training() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module[2].eval()
    modes = [m.training for m in module.modules()]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph = import_module(module, torch.randn(3, 4))
    assert [m.training for m in module.modules()] == modes == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    same(graph, module.eval(), torch.randn(3, 4))


def test_a_failed_import_leaves_the_mode_too(mlp: Mlp) -> None:
    mlp.train()
    with pytest.raises(Unsupported):
        import_module(mlp, torch.ones(2, 5))
    assert all(m.training for m in mlp.modules())


def test_recurrent_modules_run_as_before_after_an_import() -> None:
    module = nn.LSTM(3, 4, batch_first=True).eval()
    x = torch.randn(2, 5, 3)
    expected = module(x)[0]
    import_module(module, x)
    assert "forward" not in module.__dict__
    assert torch.equal(module(x)[0], expected)


# -- weights and scopes ----------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))  # type: ignore[no-any-return]


def test_tied_weights_are_stored_once() -> None:
    torch.manual_seed(0)
    module = Tied().eval()
    graph = import_module(module, torch.ones(2, 3, dtype=torch.long))
    large = [c for c in graph.constants.values() if c.tensor.numel == 400]
    assert len(large) == 1
    same(graph, module, torch.randint(50, (2, 3)))


def test_one_module_called_twice_has_its_weights_once() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))  # type: ignore[no-any-return]

    graph = import_module(Again(), torch.ones(2, 4))
    assert sorted(len(c.uses) for c in graph.constants.values()) == [2, 2]
    assert {n.scope for n in graph.nodes} == {"layer"}


def test_scopes_are_module_paths(mlp: Mlp) -> None:
    graph = import_module(nn.Sequential(mlp, nn.ReLU()), torch.ones(2, 4))
    assert [n.scope for n in graph.nodes] == ["0.first", "0.act", "0.last", "1"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [None, (), {}])
def test_missing_examples_are_refused(mlp: Mlp, examples: Any) -> None:
    assert refused(InvalidOption, mlp, examples) == (
        "a torch module needs example inputs for tracing"
    )


def test_examples_that_are_not_tensors_are_refused() -> None:
    assert refused(InvalidOption, Several(), (torch.ones(2), 3)) == (
        "input 1 contains a int (3), not a tensor: wrap the module in one whose forward takes only tensors"
    )


def test_more_examples_than_arguments_are_refused(mlp: Mlp) -> None:
    message = refused(InvalidOption, mlp, (torch.ones(2, 4), torch.ones(2)), dynamic_shapes=BATCH)
    assert message == "2 example inputs for 1 arguments of forward"


def test_dynamic_shapes_of_unknown_arguments_are_refused(mlp: Mlp) -> None:
    shapes = {"y": {0: "batch"}}
    assert refused(InvalidOption, mlp, torch.ones(2, 4), dynamic_shapes=shapes) == (
        "dynamic shapes for y, which forward does not take"
    )


def test_a_dim_that_cannot_vary_is_refused_by_its_name(mlp: Mlp) -> None:
    shapes = {"x": {0: "batch", 1: "width"}}
    assert refused(Unsupported, mlp, torch.ones(2, 4), dynamic_shapes=shapes) == (
        "dim 1 of x, named 'width', cannot vary: the model works only for size 4"
    )


def test_an_op_without_a_conversion_is_named_with_its_module() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    message = refused(Unsupported, nn.Sequential(Odd()), torch.eye(3))
    assert message == (
        "aten._linalg_eigh.default %_linalg_eigh (0): no conversion and no decomposition for this op of torch: "
        "use other ops, or export the model to ONNX and compile the file"
    )


def test_a_module_that_cannot_be_traced_is_refused_in_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    message = refused(Unsupported, Branches(), torch.ones(3))
    assert message.startswith("torch.export cannot trace the module: ")


def test_a_module_with_state_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + self.calls

    assert refused(Unsupported, Counts(), torch.ones(3)) == (
        "the module changes its state 'calls', but a graph has none: make it an input and an output"
    )


def test_an_lstm_with_a_projection_is_refused() -> None:
    module = nn.Sequential(nn.LSTM(3, 4, proj_size=2))
    assert refused(Unsupported, module, torch.ones(2, 5, 3)) == (
        "0: an LSTM with proj_size has no equivalent in ONNX"
    )


# -- model directories -----------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_model_directories_are_loaded(directory: Path) -> None:
    loaded = load_pretrained(directory)
    module = loaded.module
    assert type(module).__name__ == "BertModel" and not module.training
    assert loaded.remarks == []
    graph = import_module(module, loaded.examples, dynamic_shapes=loaded.shapes)
    assert [repr(v) for v in graph.inputs] == [
        "%input_ids: i64[batch, sequence]", "%attention_mask: i64[batch, sequence]",
    ]  # fmt: skip
    feeds = {
        "input_ids": np.full((2, 5), 7),
        "attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0]]),
    }
    with torch.no_grad():
        expected = module(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    got = evaluate(graph, feeds)
    # One layer of float32 of magnitude 1.
    np.testing.assert_allclose(
        got["last_hidden_state"], expected.last_hidden_state.numpy(), atol=1e-5
    )


def test_a_folder_that_is_not_a_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel) as error:
        load_pretrained(tmp_path)
    assert str(error.value) == f"{tmp_path}: no config.json, so not a model directory"


@pytest.mark.parametrize(("data", "reason"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_a_damaged_config_is_refused(tmp_path: Path, data: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(data)
    with pytest.raises(InvalidModel) as error:
        load_pretrained(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {reason}")


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(Unsupported) as error:
        load_pretrained(directory)
    assert str(error.value) == (
        f"{directory}: pytorch_model.bin is a pickle, which can run code: save it as safetensors "
        "(save_pretrained does), or trust it (--trust)"
    )


def test_a_directory_without_weights_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidModel) as error:
        load_pretrained(directory)
    assert str(error.value) == f"{directory}: no *.safetensors"


def test_an_unknown_architecture_is_refused(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["OwnModel"]}))
    with pytest.raises(Unsupported) as error:
        load_pretrained(directory)
    assert str(error.value) == f"{directory}: transformers has no OwnModel"
