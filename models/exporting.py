"""A workload's module as the ONNX file that torch's own exporters make of it."""

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
    """Writes ``module`` to ``path`` with its open dims under their names.

    Args:
        inputs: what it is traced with, by input name, in the order of the module's arguments.
        dynamic_shapes: names of the inputs' open dims.
        outputs: names of the outputs.
        output_shapes: names of the outputs' open dims, which only the legacy exporter has to be told.
        legacy: by the TorchScript exporter (``dynamo=False``), for what the newer one cannot export
            with open dims: it unrolls recurrent layers.
    """
    # The exporters warn of dims that they name themselves, and of torchvision, which no op here needs.
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
