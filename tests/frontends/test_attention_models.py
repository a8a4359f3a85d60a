"""Attention of every kind of transformer, from every exporter, becomes one op, and computes what ONNX
Runtime makes of the file as it is, at other sizes than the exporter saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from attention_models import EXPORTERS, GENERIC, KINDS, error, export, fused, reference

pytestmark = pytest.mark.filterwarnings("ignore")  # Exporters warn of themselves.

# Two layers of float32: errors are near 1e-6.
TOLERANCE = 2e-5
# Batch and heads in one axis (with a bias by positions), two masks one after the other, one head of keys, a
# window that leaves padded queries without keys.
ALWAYS = {
    ("bloom", "eager, opset 17"),
    ("gpt-neo", "eager, opset 11"),
    ("falcon", "sdpa, opset 17"),
    ("mistral", "sdpa, dynamo"),
}
ALL = [
    pytest.param(name, exporter, marks=[] if (name, exporter) in ALWAYS else [pytest.mark.sweep])
    for name in KINDS
    for exporter in EXPORTERS
]


@pytest.mark.parametrize(("name", "exporter"), ALL)
def test_attention_becomes_one_op_and_matches(
    name: str, exporter: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = KINDS[name]
    try:
        path = export(kind, exporter, tmp_path / "model.onnx")
        reference(path)
    except Exception as refused:
        assert (name, exporter) not in ALWAYS
        pytest.skip(f"there is no such model: {str(refused)[:80]}")
    if exporter not in GENERIC.get(name, ()):
        assert fused(path) == kind.layers
    everything = request.config.getoption("--all") and exporter in (
        "eager, opset 17",
        "sdpa, dynamo",
    )
    for runtime in ("ort", "tvm") if everything else ("ort",):
        assert error(kind, path, runtime) < TOLERANCE
