"""What every workload under this folder offers, and how to find one."""

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
    """Writes an ONNX file and gives its path."""

    def __call__(self, path: Path, model: torch.nn.Module | None = None) -> Path: ...


@dataclass(frozen=True)
class Workload:
    """A model with something to do.

    Attributes:
        name: of its folder.
        module: the model with seeded weights, for all that needs no trained ones; quick.
        build: the trained model in evaluation mode; the same numbers every time on a machine. Where it
            has to learn, this takes a while the first time (:mod:`tersor.models.training`).
        example_inputs: what it is traced with, by input name, in the order of the module's arguments.
        dynamic_shapes: names of open dims: ``{"input_ids": {0: "batch", 1: "sequence"}}``.
        outputs: names of its outputs.
        export_onnx: writes what ``build`` gives, or the module given (of the same kind), as an ONNX
            file by torch's own exporter, open dims kept.
        calibration: batches of inputs from data like that of ``test``, but not the same.
        test: batches of real inputs that calibration has not seen; what fidelity is told on.
        metric: what the task says of a way to run the model, by name; more is better.
        floor: what each number of ``metric`` reaches at least before compression, well above guessing.
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
        """What :func:`tersor.compile` takes beside the module."""
        return {
            "example_inputs": self.example_inputs(),
            "dynamic_shapes": self.dynamic_shapes,
            "output_names": list(self.outputs),
        }


def names() -> list[str]:
    """Names of all workloads, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(models.__path__) if info.ispkg)


def find(name: str) -> Workload:
    """The workload called ``name``: the WORKLOAD of its ``workload`` module."""
    workload: Workload = importlib.import_module(f"tersor.models.{name}.workload").WORKLOAD
    return workload


def description(name: str) -> str:
    """What the workload is, in one line: its package's docstring."""
    return (importlib.import_module(f"tersor.models.{name}").__doc__ or "").strip()


def runner(workload: Workload, module: torch.nn.Module) -> Run:
    """Runs the module itself: what compiled models are compared with."""
    import torch

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            made = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
        tensors = made if isinstance(made, tuple | list) else (made,)
        return dict(zip(workload.outputs, (t.numpy() for t in tensors), strict=True))

    return run
