"""Exports a workload's module with torch's own exporters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def export_onnx(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    *,
    dynamic_shapes: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    output_shapes: Mapping[str, Mapping[int, str]] | None = None,
    legacy: bool = False,
) -> Path:
    """Writes ``module`` to ``path`` with named open dims.

    Args:
        inputs: example inputs by name, in the order of the module's arguments.
        dynamic_shapes: names of the inputs' open dims.
        outputs: names of the outputs.
        output_shapes: names of the outputs' open dims, needed by the legacy exporter only.
        legacy: use the TorchScript exporter (``dynamo=False``), for models that the newer one cannot
            export with open dims or whose recurrent layers it unrolls.
    """
    # Irrelevant warnings: about dims that the exporters name themselves, and missing torchvision.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if legacy:
            axes = {**dynamic_shapes, **(output_shapes or {})}
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: dict(dims) for name, dims in axes.items()},
                dynamo=False,
                opset_version=17,
            )
        else:
            torch.onnx.export(
                module,
                kwargs=dict(inputs),
                f=str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes={name: dict(dims) for name, dims in dynamic_shapes.items()},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    return path
