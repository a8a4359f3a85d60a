"""Every model of tests/real/packages.txt through every recipe on both runtimes: the right numbers, in a
file that is no larger, or a refusal in a line that says why.

``make real`` installs the packages and runs this; where they are not installed it is skipped.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import quantize_dynamic
from real.models import BY_NAME, CALIBRATION, MODELS, Feed, installed, reference

import tersor
from tersor.built import built_size, main_file
from tersor.errors import TersorError
from tersor.pipeline.report import FEW_ROWS

pytestmark = pytest.mark.skipif(not installed(), reason="`make real` installs what this needs")

NAMES = [m.name for m in MODELS]
# Of float32 sums in another order, through a hundred layers.
EXACT = 1e-4
MOST_CODE = 400_000  # Bytes of a library without its weights, compressed; most in use is 277 KB.
# ONNX Runtime quantizes what its int8 LSTMs read, at each step; TVM leaves that in float.
QUANTIZED_LSTMS = [name for name in NAMES if name.startswith("tashkeel") and "ensemble" not in name]
FLOAT_LSTM = 0.02
# What the default floor, a cosine of 0.95, is as an error: sqrt(1 - 0.95^2). Of other inputs than those that fits
# were made of, all together. Where the report warns that there were too few of those, twice as much, and
# this of those that fits were made of: what is wrong is wrong on both.
FLOOR = 0.32
# Steps of 8 bits, through ten layers; most is 0.041, of the states of silero-vad.
STEPS = 0.06
# Why a runtime does not take a model, where that is so.
REFUSED: dict[tuple[str, str], str] = {}


@cache
def feeds(name: str) -> list[Feed]:
    return BY_NAME[name].feeds()


@cache
def expected(name: str) -> list[Feed]:
    run = reference(BY_NAME[name].path)
    return [run(feed) for feed in feeds(name)[CALIBRATION:]]


def compiled(name: str, recipe: str, runtime: str) -> tersor.Artifact | None:
    """The model by a recipe; None where it is refused with the reason that REFUSED has."""
    try:
        return tersor.compile(
            BY_NAME[name].path,
            recipe=recipe,
            runtime=runtime,
            calibration=feeds(name)[:CALIBRATION],
            measure=False,
        )
    except TersorError as error:
        reason = REFUSED.get((name, runtime))
        assert reason is not None and reason in str(error), str(error)
        return None


def worst(name: str, run: Any) -> dict[str, float]:
    """The largest error of each output: relative, of integers the share that changed."""
    found: dict[str, float] = {}
    for feed, want in zip(feeds(name)[CALIBRATION:], expected(name), strict=True):
        got = run(feed)
        assert list(got) == list(want)
        for key, a in want.items():
            b = got[key]
            assert (a.shape, a.dtype) == (b.shape, b.dtype), key
            error = float((a != b).mean())
            if a.dtype.kind == "f":
                error = float(np.linalg.norm((a - b).astype(np.float64))) / max(
                    float(np.linalg.norm(a)), 1e-30
                )
            found[key] = max(found.get(key, 0.0), error)
    return found


@cache
def moved(name: str) -> dict[str, float]:
    """What ONNX Runtime's own optimizer does to the outputs. A model that quantizes what it computes takes
    the last bit of a sum for a step of its scale now and then: so much is not ours to keep."""
    run = reference(BY_NAME[name].path, optimized=True)
    return worst(name, run)


@pytest.mark.parametrize("runtime", ["ort", "tvm"])
@pytest.mark.parametrize("name", NAMES)
def test_lossless_keeps_the_numbers_and_the_size(name: str, runtime: str, tmp_path: Path) -> None:
    artifact = compiled(name, "fp32", runtime)
    if artifact is None:
        return
    errors = worst(name, artifact.run)
    least = FLOAT_LSTM if runtime == "tvm" and name in QUANTIZED_LSTMS else EXACT
    allowed = {k: max(least, 3 * v) for k, v in moved(name).items()}
    assert {k: v for k, v in errors.items() if not v <= allowed[k]} == {}
    most = 1.01 * BY_NAME[name].path.stat().st_size + 4096
    if runtime == "ort":
        assert artifact.save(tmp_path / "m.onnx").stat().st_size <= most
    else:
        # Machine code is apart from what it reads: it grows with the kinds of layers, not with their weights.
        assert built_size(artifact.model) - len(main_file(artifact.model)) <= most
        assert len(main_file(artifact.model)) <= MOST_CODE


@pytest.mark.parametrize("runtime", ["ort", "tvm"])
@pytest.mark.parametrize("recipe", ["int8", "prune", "lowrank"])
@pytest.mark.parametrize("name", NAMES)
def test_lossy_stays_near(name: str, recipe: str, runtime: str) -> None:
    artifact = compiled(name, recipe, runtime)
    if artifact is None:
        return
    unseen = range(CALIBRATION, len(feeds(name)))
    if recipe == "int8":
        assert above(name, artifact.run, unseen, STEPS) == {}
    elif few(artifact):
        # Of other inputs than those that it was fitted to little is promised; of those it is.
        assert above(name, artifact.run, range(CALIBRATION), FLOOR) == {}
        assert above(name, artifact.run, unseen, 2 * FLOOR) == {}
    else:
        assert above(name, artifact.run, unseen, FLOOR) == {}


def few(artifact: tersor.Artifact) -> bool:
    """Whether the report warns that calibration has too few rows for what is fitted."""
    return any(n.method == FEW_ROWS for step in artifact.report.passes for n in step.notes)


def above(name: str, run: Any, batches: range, bound: float) -> dict[str, float]:
    """The outputs that are further from the input's than ``bound``, or than ONNX Runtime moves them."""
    errors, moves = together(name, run, batches), moved(name)
    return {k: v for k, v in errors.items() if not v <= max(bound, 3 * moves[k])}


def together(name: str, run: Any, batches: range) -> dict[str, float]:
    """The error of each output over all batches: relative, of integers the share that changed."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    wanted = reference(BY_NAME[name].path)
    for feed in (feeds(name)[i] for i in batches):
        want, got = wanted(feed), run(feed)
        for key, a in want.items():
            assert (a.shape, a.dtype) == (got[key].shape, got[key].dtype), key
            pairs.setdefault(key, []).append((a.reshape(-1), got[key].reshape(-1)))
    found = {}
    for key, both in pairs.items():
        a, b = (np.concatenate(parts) for parts in zip(*both, strict=True))
        found[key] = float((a != b).mean())
        if a.dtype.kind == "f":
            a, b = a.astype(np.float64), b.astype(np.float64)
            found[key] = float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_no_larger_than_what_quantize_dynamic_makes(name: str, tmp_path: Path) -> None:
    artifact, theirs = compiled(name, "int8", "ort"), tmp_path / "theirs.onnx"
    assert artifact is not None
    try:
        quantize_dynamic(BY_NAME[name].path, theirs)
    except Exception as error:  # Whatever it stumbles over, it has no file to compare with.
        pytest.skip(f"quantize_dynamic does not take it: {error}")
    size = artifact.save(tmp_path / "m.onnx").stat().st_size
    assert size <= 1.02 * theirs.stat().st_size + 4096


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_those_that_the_model_takes(name: str) -> None:
    model = onnx.load(BY_NAME[name].path, load_external_data=False)
    initializers = {t.name for t in model.graph.initializer}
    names = {v.name for v in model.graph.input} - initializers
    assert all(set(feed) == names for feed in feeds(name))
    assert len(expected(name)) > 0


def computing(model: onnx.ModelProto) -> int:
    """Nodes, those of subgraphs too, but for what ONNX Runtime computes when it loads the model: numbers
    of constants that are held in few bits, which other tools write out in full."""

    def count(graph: onnx.GraphProto, known: set[str]) -> int:
        known, total = known | {"", *(t.name for t in graph.initializer)}, 0
        for node in graph.node:
            subgraphs = [g for a in node.attribute for g in (*a.graphs, a.g)]
            if node.op_type == "Constant" or (node.input and known.issuperset(node.input)):
                known.update(node.output)
            else:
                total += 1 + sum(count(g, known) for g in subgraphs)
        return total

    return count(model.graph, set())


@pytest.mark.parametrize("name", NAMES)
def test_no_more_nodes_than_tools_that_simplify_leave(name: str, tmp_path: Path) -> None:
    counts = []
    for tool in ("onnxslim", "onnxsim"):
        out = tmp_path / f"{tool}.onnx"
        command = [sys.executable, "-m", tool, str(BY_NAME[name].path), str(out)]
        done = subprocess.run(command, capture_output=True, timeout=600)
        if done.returncode == 0 and out.exists():
            counts.append(computing(onnx.load(out)))
    artifact = compiled(name, "fp32", "ort")
    if not counts or artifact is None:
        pytest.skip("no tool that simplifies takes it")
    assert computing(onnx.load(artifact.save(tmp_path / "m.onnx"))) <= min(counts)
