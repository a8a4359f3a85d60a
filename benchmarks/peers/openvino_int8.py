"""OpenVINO with NNCF's int8: quantized by the preset for transformers, on the sentences that calibrate
ours, one by one, so that no padding is counted.

``python openvino_int8.py MODEL.onnx CALIBRATION.npz OUT.xml`` quantizes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from tersor.errors import InvalidModel, one_line
from tersor.target import usable_cores

# OpenVINO's own default, which may compute in bfloat16 what is not int8; and float32.
CHOICES: tuple[dict[str, str], ...] = ({}, {"INFERENCE_PRECISION_HINT": "f32"})
PACKAGES = ("openvino", "nncf")


def build(original: Path, calibration: list[dict[str, np.ndarray]], folder: Path) -> Path:
    """The quantized model in ``folder``. Made by a process of its own, without telemetry."""
    items = folder / "calibration.npz"
    single = {
        f"{name} {i} {row}": array[row : row + 1, : int(feed["attention_mask"][row].sum())]
        for i, feed in enumerate(calibration)
        for name, array in feed.items()
        for row in range(len(array))
    }
    np.savez(items, **single)  # type: ignore[arg-type]
    path = folder / "model.xml"
    command = [sys.executable, __file__, str(original), str(items), str(path)]
    # CI=true is what turns telemetry off without asking.
    subprocess.run(command, check=True, env={**os.environ, "CI": "true"}, stdout=sys.stderr)
    items.unlink()
    return path


def open_session(path: Path, choice: Mapping[str, object]) -> Session:
    """A compiled model, for latency, on all cores."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(len(usable_cores())),
        **choice,
    }
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise InvalidModel(one_line(error)) from None
    return Session(compiled.create_infer_request())


@dataclass(frozen=True)
class Session:
    """A compiled model, fed and read by name."""

    request: Any

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        made = self.request.infer(dict(inputs))
        return {output.get_any_name(): np.array(value) for output, value in made.items()}


def _items(path: Path) -> Iterator[dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as held:
        for key in held.files:
            name, item = key.split(" ", 1)
            found.setdefault(item, {})[name] = held[key]
    return iter(found.values())


def _quantize(original: str, calibration: str, out: str) -> None:
    import nncf

    items = list(_items(Path(calibration)))
    model = nncf.quantize(
        openvino.convert_model(original),
        nncf.Dataset(items),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(items),
    )
    openvino.save_model(model, out)


if __name__ == "__main__":
    _quantize(*sys.argv[1:])
