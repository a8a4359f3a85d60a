"""Every workload, from torch and from its ONNX file: open dims kept, the same numbers at any size, files
that are no larger, int8 and its own recipe built, and a metric that says that it has learned something."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic

import tersor
from tersor.analysis.feeds import dim_names, make_feed
from tersor.backends import ort
from tersor.frontends import load_model
from tersor.ir import Graph, load, print_graph, save
from tersor.models import zoo
from tersor.ops import TABLE
from tersor.pipeline import Pipeline, legality, registry
from tersor.pipeline.runner import weight_bytes
from tersor.target import Target

NAMES = zoo.names()
# Sums of some hundred float32 terms of magnitude 1, through some layers, in another order: errors are
# near 1e-6 of the largest number.
TOLERANCE = 1e-4
# What a lossless file may be larger than its input, and int8's than that of ONNX Runtime's own quantizer;
# and the bytes that a few nodes take, of models of some kilobytes.
GROWTH, OVER_THEIRS, SMALL = 1.01, 1.02, 4096
Feed = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of every compilation by all rules."""
    monkeypatch.setattr(legality, "HARD", True)


@cache
def untrained(name: str) -> torch.nn.Module:
    return zoo.find(name).module()


@cache
def from_torch(name: str) -> Graph:
    return load_model(untrained(name), **zoo.find(name).torch_arguments()).graph


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workloads")


def exported(name: str, files: Path) -> Path:
    path = files / f"{name}.onnx"
    if not path.exists():
        zoo.find(name).export_onnx(path, untrained(name))
    return path


def from_onnx(name: str, files: Path) -> Graph:
    return load_model(exported(name, files)).graph


def graph_of(name: str, source: str, files: Path) -> Graph:
    return from_torch(name) if source == "torch" else from_onnx(name, files)


def odd_feed(name: str, graph: Graph) -> dict[str, np.ndarray]:
    """Inputs at sizes that the example does not have."""
    sizes = {dim: 2 + 3 * i for i, dim in enumerate(dim_names(graph))}
    example = zoo.find(name).example_inputs()
    feed = make_feed(graph, sizes, seed=7)
    assert any(feed[k].shape != tuple(v.shape) for k, v in example.items())
    return feed


def check_equal(got: Feed, expected: Feed) -> None:
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert got[key].shape == value.shape
        assert got[key].dtype == value.dtype
        error = np.abs(got[key].astype(np.float64) - value).max(initial=0)
        assert error <= TOLERANCE * max(1, np.abs(value).max(initial=0)), key


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torch", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_open_dims_keep_their_names(name: str, source: str, files: Path) -> None:
    workload = zoo.find(name)
    graph = graph_of(name, source, files)
    assert [v.name for v in graph.inputs] == list(workload.example_inputs())
    assert graph.output_names == list(workload.outputs)
    for value in graph.inputs:
        dims = value.tensor.dims
        named = workload.dynamic_shapes.get(value.name, {})
        assert dims is not None
        assert {i: str(d) for i, d in enumerate(dims) if not isinstance(d, int)} == dict(named)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torch", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_it_computes_what_torch_does_at_other_sizes(
    name: str, source: str, files: Path
) -> None:
    graph = Pipeline(registry.optimization()).run(graph_of(name, source, files))
    session = ort.open_session(ort.build(graph))
    feeds = [odd_feed(name, graph), zoo.find(name).test()[0]]
    expected = zoo.runner(zoo.find(name), untrained(name))
    for feed in feeds:
        check_equal(session.run(feed), expected(feed))


@pytest.mark.parametrize("name", NAMES)
def test_on_disk_it_is_the_same_graph(name: str, tmp_path: Path) -> None:
    graph = from_torch(name)
    again = load(save(graph, tmp_path / f"{name}.graph"), TABLE)
    assert print_graph(again) == print_graph(graph)
    assert weight_bytes(again) <= weight_bytes(graph)  # Of equal constants there is one.
    (weights,) = tmp_path.glob("weights-*")
    padding = 64 * sum(len(g.constants) for g in graph.all_graphs())
    assert weights.stat().st_size <= weight_bytes(graph) + padding
    feed = zoo.find(name).test()[0]
    before, after = (ort.open_session(ort.build(g)).run(feed) for g in (graph, again))
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


def saved(given: Path, recipe: str) -> int:
    """Bytes of the file that a recipe makes."""
    out = given.with_suffix(f".{recipe}.onnx")
    return tersor.compile(given, recipe=recipe, measure=False).save(out).stat().st_size


@pytest.mark.parametrize("name", NAMES)
def test_no_lossless_file_is_larger_than_the_input(name: str, files: Path) -> None:
    given = exported(name, files)
    size = sum(p.stat().st_size for p in files.glob(f"{name}.onnx*"))  # Weights beside it, too.
    assert saved(given, "fp32") <= GROWTH * size + SMALL


@pytest.mark.parametrize("name", NAMES)
def test_no_library_of_tvm_stores_more_than_the_input(name: str, files: Path) -> None:
    """Its code is apart: some hundred kilobytes, whatever the weights."""
    pytest.importorskip("tvm")
    from tersor.backends.tvm.build import lower_for
    from tersor.backends.tvm.library import ALIGNMENT
    from tersor.backends.tvm.options import Choice

    graph = Pipeline(registry.optimization()).run(from_onnx(name, files))
    size = sum(p.stat().st_size for p in files.glob(f"{name}.onnx*"))
    weights = lower_for(graph, Choice.of(Target.host())).weights(ALIGNMENT)
    assert weights is not None
    assert weights.size <= GROWTH * size + SMALL


@pytest.mark.parametrize("name", NAMES)
def test_no_int8_file_is_larger_than_that_of_quantize_dynamic(name: str, files: Path) -> None:
    given, theirs = exported(name, files), files / f"{name}.theirs.onnx"
    quantize_dynamic(given, theirs)
    assert saved(given, "int8") <= OVER_THEIRS * theirs.stat().st_size + SMALL


# Training all of them takes minutes.
QUICK = ["gru_classifier", "mobilenet_digits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.sweep) for n in NAMES],
)
def test_it_has_learned_its_task_and_int8_keeps_it(name: str) -> None:
    workload = zoo.find(name)
    module = workload.build()
    before = workload.metric(zoo.runner(workload, module))
    assert before.keys() == workload.floor.keys()
    for key, floor in workload.floor.items():
        assert before[key] >= floor
    recipe = Path(zoo.__file__).parent / name / "recipe.toml"
    for chosen in ("int8", recipe):
        artifact = tersor.compile(
            module, recipe=chosen, calibration=workload.calibration(), measure=False,
            **workload.torch_arguments(),
        )  # fmt: skip
        assert artifact.report.size_after is not None and artifact.report.size_before is not None
        assert any(p.rewrites for p in artifact.report.passes if p.name.startswith("quantize-"))
        assert artifact.report.size_after < 0.95 * artifact.report.size_before
        after = workload.metric(artifact.run)
        for key in before:
            # Of a thousand decisions, int8 turns a few that were close to even.
            assert after[key] >= before[key] - 0.03, (key, before, after)


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_says_what_it_is(name: str) -> None:
    recipe = tersor.Recipe.of(Path(zoo.__file__).parent / name / "recipe.toml")
    assert recipe.name == name
    assert recipe.description
    # A recipe without passes is one that says why none of ours suits the model.
    assert recipe.build() or recipe.description.startswith("Lossless")


@pytest.mark.parametrize("name", NAMES)
def test_calibration_and_test_inputs_differ(name: str) -> None:
    workload = zoo.find(name)
    inputs = list(workload.example_inputs())
    used, held_out = workload.calibration(), workload.test()
    assert all(list(feed) == inputs for feed in (*used, *held_out))
    seen = {feed[inputs[0]].tobytes() for feed in used}
    assert all(feed[inputs[0]].tobytes() not in seen for feed in held_out)
