"""MiniLM from several exporters, in TVM: whether fusion gives the same graph, and the same speed.

The forms differ in attention and padding masks: one op or products and a softmax, a boolean mask or an added
float one.  Rounds of all libraries of a recipe and a level are interleaved; a form's time is its shortest,
because disturbances only ever add time.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import rows
import torch
from rows import Json

import tersor
from tersor.frontends.onnx import import_model
from tersor.ir import Graph
from tersor.models.minilm import build, data, metrics
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.pipeline import Pipeline
from tersor.target import Target
from tersor.tuning.measure import Bench, Worker

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for comparing graphs

from nameless import lines

SHAPES = ((1, 32), (8, 128))
RECIPES = ("fp32", "int8")
Mask = Callable[[torch.Tensor], torch.Tensor]


def added(number: float) -> Mask:
    """(1 - mask) * number, as in BERT, and in transformers until 4.40."""
    return lambda mask: (1.0 - mask[:, None, None, :].float()) * number


@dataclass(frozen=True)
class Form:
    """
    Attributes:
        attention: transformers' implementation.
        opset: for the TorchScript exporter; 0: the newer exporter.
        mask: computes the encoder's mask from the integer mask.
    """

    attention: str
    opset: int = 0
    mask: Mask | None = None


FORMS = {
    "sdpa, dynamo": Form("sdpa"),
    "eager, dynamo": Form("eager"),
    "-10000, opset 11": Form("eager", 11, added(-10000.0)),
    "lowest, opset 11": Form("eager", 11, added(torch.finfo(torch.float32).min)),
}
FIRST = next(iter(FORMS))


class Masked(torch.nn.Module):
    """An encoder whose mask is computed by ``mask``."""

    def __init__(self, encoder: torch.nn.Module, mask: Mask) -> None:
        super().__init__()
        self.encoder, self.mask = encoder, mask

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.encoder(input_ids=input_ids, attention_mask=self.mask(attention_mask))


def export(form: Form, path: Path) -> Path:
    """Writes the model in this form."""
    model = build.build(form.attention)
    if form.mask is not None:
        model.encoder = Masked(model.encoder, form.mask)
    if not form.opset:
        return build.export_onnx(path, model)
    inputs = build.example_inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter's own deprecations.
        torch.onnx.export(
            model, tuple(inputs.values()), str(path), input_names=list(inputs), dynamo=False,
            output_names=[build.OUTPUT], dynamic_axes=build.DYNAMIC_SHAPES, opset_version=form.opset,
        )  # fmt: skip
    return path


# -- one graph -------------------------------------------------------------------------------------


def graph_of(path: Path) -> Graph:
    return Pipeline(optimization(), evaluate=evaluate).run(import_model(path))


def comparison(graph: Graph, first: Graph) -> Json:
    """A graph's nodes, its mask, and the number of lines, apart from those that compute the mask, that differ
    from the first graph's."""
    masks = _masks(graph)
    (mask,) = masks
    return {
        "nodes": len(list(graph.nodes)),
        "attentions": sum(node.op == "Attention" for node in graph.nodes),
        "mask": str(mask.type),
        "lines_that_differ": _differing(lines(graph, masks), lines(first, _masks(first))),
    }


def _masks(graph: Graph) -> dict[Any, str]:
    return {node.inputs[3]: "mask" for node in graph.nodes if node.op == "Attention"}


def _differing(a: list[str], b: list[str]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


# -- equally fast ----------------------------------------------------------------------------------


def compiled(path: Path, recipe: str, target: str) -> tersor.Artifact:
    return tersor.compile(
        path,
        recipe=recipe,
        runtime="tvm",
        target=target,
        calibration=data.calibration() if recipe == "int8" else None,
        measure=False,
    )


def reference(path: Path) -> np.ndarray:
    """Embeddings by ONNX Runtime without optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(feed))[0] for feed in data.test_feeds()])


def times(workers: dict[str, Worker], feed: int, rounds: int) -> dict[str, float]:
    """The shortest milliseconds of each over interleaved rounds."""
    least = dict.fromkeys(workers, float("inf"))
    order = list(workers)
    for _ in range(rounds):
        for name in order:
            least[name] = min(least[name], workers[name].milliseconds(feed))
        order.reverse()
    return least


def measured(
    files: dict[str, Path], recipe: str, target: str, rounds: int, wanted: dict[str, np.ndarray]
) -> Json:
    """Fidelity to the ``wanted`` embeddings, and times by shape, also relative to the first form's."""
    tests = data.test_feeds()
    by_form: Json = {name: {"times": {}} for name in files}
    with Bench([data.full(*shape) for shape in SHAPES] + tests) as bench:
        workers = {}
        for name, path in files.items():
            print(f"exporters: {recipe} for {target}: {name}", flush=True)
            artifact = compiled(path, recipe, target)
            workers[name] = bench.start("tvm", artifact.model, artifact.choice)
        for i, (batch, length) in enumerate(SHAPES):
            least = times(workers, i, rounds)
            for name, ms in least.items():
                over = round(ms / least[FIRST], 3)
                by_form[name]["times"][f"{batch}x{length}"] = {
                    "ms": round(ms, 3),
                    "over_first": over,
                }
        for name, worker in workers.items():
            places = range(len(SHAPES), len(SHAPES) + len(tests))
            got = np.concatenate([worker.outputs(i)[build.OUTPUT] for i in places])
            by_form[name]["fidelity"] = metrics.fidelity(wanted[name], got)
    return by_form


def levels() -> list[str]:
    """This machine's own level, and AVX2 if that is lower."""
    host = Target.host()
    more = {"avx512f", "avx_vnni"} & set(host.features)
    return ["cpu", *(["cpu:avx2"] if more and "avx2" in host.features else [])]


def main() -> int:
    """Measures what is missing and writes JSON."""
    since = time.monotonic()
    parser = rows.parser(__doc__, "exporters.json")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    wanted = rows.conditions([Path(__file__)], {"rounds": arguments.rounds})
    results = rows.load(arguments.out, wanted, arguments.fresh)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for i, (name, form) in enumerate(FORMS.items()):
            print(f"exporters: exporting {name}", flush=True)
            files[name] = export(form, Path(folder) / f"{i}.onnx")
        first = graph_of(files[FIRST])
        results["graphs"] = {
            name: comparison(graph_of(path), first) for name, path in files.items()
        }
        embeddings = {name: reference(path) for name, path in files.items()}
        stored = results.setdefault("speed", {})
        for target in levels():
            for recipe in RECIPES:
                if f"{recipe} {target}" in stored:
                    continue
                row = measured(files, recipe, target, arguments.rounds, embeddings)
                stored[f"{recipe} {target}"] = row
                rows.save(arguments.out, results)
    rows.finish(arguments.out, results, since)
    return 0


if __name__ == "__main__":
    sys.exit(main())
