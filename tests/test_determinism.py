"""The same compilation writes the same bytes, whatever the process and its hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.ir import parse
from tersor.ops import TABLE

# Compiles workloads from ONNX files and as torch modules, and tells the hash of every file written.
COMPILE = """
import hashlib, json, sys
from pathlib import Path
import tersor
from tersor.models import zoo

folder, out = map(Path, sys.argv[1:3])
found = {}
for name in sys.argv[3:]:
    workload = zoo.find(name)
    # A few samples: what depends on them does so after any.
    batch = {k: v[:2] for k, v in workload.calibration()[0].items()}
    sources = {"onnx": (folder / f"{name}.onnx", {}), "torch": (workload.module(), workload.torch_arguments())}
    for kind, (model, arguments) in sources.items():
        for recipe in ("fp32", "int8"):
            made = tersor.compile(model, recipe=recipe, calibration=[batch], measure=False, **arguments)
            saved = made.save(out / f"{name}-{kind}-{recipe}")
            for path in saved.iterdir():
                key = f"{saved.name}/{path.name}"
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_workloads_and_recipes_give_the_same_bytes_under_another_hash_seed(
    every: bool, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from tersor.models import zoo

    names = zoo.names() if every else ["bert_tiny", "gru_classifier", "t5_tiny"]
    for name in names:
        workload = zoo.find(name)
        workload.export_onnx(tmp_path / f"{name}.onnx", workload.module())
    processes = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", COMPILE, str(tmp_path), str(tmp_path / seed), *names]
        # Two processes that each wait in loops for two threads take several times as long.
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    one, other = (json.loads(p.communicate()[0].splitlines()[-1]) for p in processes)
    assert one == other
    made = {key.split("/")[0] for key in one}
    assert made == {
        f"{n}-{k}-{r}" for n in names for k in ("onnx", "torch") for r in ("fp32", "int8")
    }


SIZES = """graph main(%x: f32[a + b, c + d], %p: f32[a, b], %q: f32[c, d]) -> (y = %y) {
  @axis: i64[] = dense [1]
  %s: f32[a + b, c + d] = CumSum(%x, @axis)
  %t: f32[c + d, a + b] = Transpose(%s) {perm = [1, 0]}
  %y: f32[c + d, a + b] = Softmax(%t)
}"""


def test_what_tvm_compiles_is_the_same_each_time() -> None:
    """TVM keeps the sizes that a function is passed in sets, ordered by where its objects lie in memory: also
    in one process each time elsewhere. Eight functions have 24 orders each."""
    pytest.importorskip("tvm")
    from tersor.backends.tvm.build import lower_for
    from tersor.backends.tvm.options import Choice
    from tersor.backends.tvm.pipeline import relax_pipeline, tvm_target
    from tersor.target import Target

    graph, choice = parse(SIZES, TABLE), Choice.of(Target.host())
    target, kept, texts = tvm_target(choice.features, choice.cores), [], set()
    for _ in range(8):
        with target:
            module = relax_pipeline(target)(lower_for(graph, choice).module)
        kept.append(module)  # Its memory is not given to the next one.
        texts.add(module.script())
    assert len(texts) == 1
