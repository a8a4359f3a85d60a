"""The interface of workloads, and their registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tersor import models

if TYPE_CHECKING:
    import torch

Feed = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class ExportOnnx(Protocol):
    """Writes an ONNX file and returns its path."""

    def __call__(self, path: Path, model: torch.nn.Module | None = None) -> Path: ...


@dataclass(frozen=True)
class Workload:
    """A model with data and a task.

    Attributes:
        name: that of its folder.
        module: the untrained model with seeded weights; fast.
        build: the trained model in evaluation mode, reproducible on a machine. Training takes a while the
            first time (:mod:`tersor.models.training`).
        example_inputs: inputs to trace with, by name, in the order of the module's arguments.
        dynamic_shapes: names of open dims: ``{"input_ids": {0: "batch", 1: "sequence"}}``.
        outputs: names of its outputs.
        export_onnx: exports ``build()``, or the given module of the same architecture, with torch's
            exporter and open dims.
        calibration: batches of inputs of the same distribution as ``test``, disjoint from it.
        test: batches of real inputs to measure fidelity on.
        metric: scores of a runnable model on the task by name; higher is better.
        floor: lower bounds of the scores before compression, well above guessing.
        sizes: of the open dims, to measure speed at.
    """

    name: str
    module: Callable[[], torch.nn.Module]
    build: Callable[[], torch.nn.Module]
    example_inputs: Callable[[], dict[str, torch.Tensor]]
    dynamic_shapes: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]
    export_onnx: ExportOnnx
    calibration: Callable[[], list[Feed]]
    test: Callable[[], list[Feed]]
    metric: Callable[[Run], dict[str, float]]
    floor: Mapping[str, float]
    sizes: Sequence[Mapping[str, int]]

    def torch_arguments(self) -> dict[str, Any]:
        """The arguments of :func:`tersor.compile` for the module."""
        return {
            "example_inputs": self.example_inputs(),
            "dynamic_shapes": self.dynamic_shapes,
            "output_names": list(self.outputs),
        }


def names() -> list[str]:
    """The names of all workloads, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(models.__path__) if info.ispkg)


def find(name: str) -> Workload:
    """The workload ``name``: the WORKLOAD of its ``workload`` module."""
    workload: Workload = importlib.import_module(f"tersor.models.{name}.workload").WORKLOAD
    return workload


def description(name: str) -> str:
    """The workload in one line: its package's docstring."""
    return (importlib.import_module(f"tersor.models.{name}").__doc__ or "").strip()


def runner(workload: Workload, module: torch.nn.Module) -> Run:
    """Runs the module itself, the reference for compiled models."""
    import torch

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            result = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
        tensors = result if isinstance(result, tuple | list) else (result,)
        return dict(zip(workload.outputs, (t.numpy() for t in tensors), strict=True))

    return run
