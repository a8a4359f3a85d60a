"""The model card in an artifact's folder."""

import re
from pathlib import Path

import numpy as np
import pytest

import tersor
from tersor.artifact.card import NAME, escaped, model_card
from tersor.artifact.intact import verify
from tersor.artifact.manifest import read_manifest
from tersor.frontends.onnx import export_model
from tersor.ir import DType, TensorType
from tersor.ops import TABLE

HOSTILE = "x|<script>`*a*`[b](c)\n# d"


@pytest.fixture(scope="module")
def artifact() -> tersor.Artifact:
    graph = TABLE.graph("main")
    x = graph.add_input("x", TensorType(DType.F32, (2, 4)))
    y = graph.emit("MatMul", [x, graph.constant(np.eye(4, dtype=np.float32), "w")])
    graph.set_outputs([y], [HOSTILE])
    model = export_model(graph).SerializeToString()
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    return tersor.compile(model, recipe="fp32", calibration=feeds, measure=False)


def test_the_card_tells_what_the_manifest_and_the_report_tell(
    artifact: tersor.Artifact, tmp_path: Path
) -> None:
    folder = artifact.save(tmp_path / "out")
    text = (folder / NAME).read_text()
    manifest = read_manifest(folder)
    assert text == model_card(manifest)
    assert f"onnxruntime.InferenceSession('{manifest.model}')" in text
    assert manifest.about["input"]["sha256"] in text and "tersor.load(" in text
    assert "Unknown: it was not measured" in text
    assert f"| {manifest.report.fidelity.worst.mean_cosine:.6g} |" in text  # type: ignore[union-attr]


def test_what_the_card_says_to_run_runs(artifact: tersor.Artifact, tmp_path: Path) -> None:
    folder = artifact.save(tmp_path / "out")
    code = re.findall(r"```python\n(.*?)```", (folder / NAME).read_text(), re.S)
    inputs = {"x": np.ones((2, 4), np.float32)}
    ours: dict[str, object] = {"inputs": inputs}
    exec(code[0].replace("path/to/this/folder", str(folder)), ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        theirs: dict[str, object] = {"inputs": inputs}
        exec(code[1], theirs)
    np.testing.assert_array_equal(ours["outputs"][HOSTILE], theirs["outputs"][0])  # type: ignore[index]


def test_names_are_shown_as_they_are(artifact: tersor.Artifact, tmp_path: Path) -> None:
    text = (artifact.save(tmp_path / "out") / NAME).read_text()
    row = next(line for line in text.splitlines() if "script" in line)
    assert row.startswith("| output | ``x\\|<script>")  # In code, and the bar ends no cell.
    assert escaped(HOSTILE) == "x\\|\\<script\\>\\`\\*a\\*\\`\\[b\\]\\(c\\) \\# d"


def test_the_next_save_replaces_the_card_but_no_text_of_the_users(
    artifact: tersor.Artifact, tmp_path: Path
) -> None:
    folder = artifact.save(tmp_path / "out")
    whole = (folder / NAME).read_text()
    (folder / NAME).write_text(whole + "torn")
    assert verify(folder).notes == [f"{NAME} is not the one that was written with this model"]
    artifact.save(folder)
    assert (folder / NAME).read_text() == whole and verify(folder).notes == []
    (folder / NAME).write_text("mine")
    artifact.save(folder)
    assert (folder / NAME).read_text() == "mine"
