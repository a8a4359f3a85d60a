"""Entries of ``modules.json``, with the configs and weights in their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tersor.errors import LONGEST, InvalidModel, Unsupported, one_line
from tersor.frontends.torch.pretrained import read_object

NAME = "modules.json"
PACKAGE = "sentence_transformers"
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


@dataclass
class Part:
    """One entry of ``modules.json``.

    Attributes:
        kind: the name of its class.
        folder: the folder of its config and weights.
        label: file, position and class, for messages.
        trust: whether to read pickled weights.
        config: the options that :meth:`take` has not removed yet.
    """

    kind: str
    folder: Path
    label: str
    trust: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def read_config(self, names: Sequence[str]) -> None:
        """Reads the first of these files that exists; without one, all options have their defaults.

        Raises:
            InvalidModel: it is not a JSON object.
        """
        path = next((p for p in (self.folder / n for n in names) if p.is_file()), None)
        self.config = read_object(path) if path is not None else {}

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Removes an option from the config and returns it.

        Raises:
            InvalidModel: it is missing and has no default, or it is not of type ``kind``.
        """
        value = self.config.pop(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            fault = f"no {key}" if value is None else f"{key} {one_line(value, LONGEST)!r}"
            raise InvalidModel(f"{self.label}: its config has {fault}")
        return value

    def drop(self, *keys: str) -> None:
        """Removes options that follow from weights or inputs."""
        for key in keys:
            self.config.pop(key, None)

    def done(self) -> None:
        """Raises:
        Unsupported: an option has not been taken, so the module may do something unknown.
        """
        if self.config:
            raise self.unknown(f"option {one_line(min(self.config), LONGEST)!r}")

    def unknown(self, what: str) -> Unsupported:
        return Unsupported(f"{self.label}: {what} is not supported")


def read_parts(directory: Path, kinds: Sequence[str], why_not: dict[str, str]) -> list[Part]:
    """The entries of modules.json, in order.

    Args:
        directory: the model folder.
        kinds: the supported classes.
        why_not: why others are not supported.

    Raises:
        InvalidModel: it is damaged, or a path leads out of the folder.
        Unsupported: a class is not supported.
    """
    path = directory / NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (ValueError, OSError, TypeError, KeyError, RecursionError):
        raise InvalidModel(f"{path}: not a list of modules with type and path") from None
    parts = []
    for i, (name, folder) in enumerate(modules):
        label = f"{path}: module {i}, {one_line(name, LONGEST)}"
        relative = PurePosixPath(folder.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or "\0" in folder:
            raise InvalidModel(f"{label}: its path leads out of the folder")
        package, kind = name.partition(".")[0], name.rpartition(".")[2]
        if package != PACKAGE:
            raise Unsupported(
                f"{label}, is code from outside sentence-transformers, which is not run: load the model in "
                "Python, and give the module"
            )
        if kind not in kinds:
            reason = why_not.get(kind, f"supported are {', '.join(sorted(kinds))}")
            raise Unsupported(f"{label}, is not supported: {reason}")
        parts.append(Part(kind, directory.joinpath(*relative.parts), label))
    return parts


# -- weights ---------------------------------------------------------------------------------------


class Weights(dict[str, Tensor]):
    """Tensors by name; a missing one is an InvalidModel."""

    def __init__(self, tensors: dict[str, Tensor], label: str) -> None:
        super().__init__(tensors)
        self.label = label

    def __missing__(self, name: str) -> Tensor:
        raise InvalidModel(f"{self.label}: its weights have no {name}")


def read_weights(part: Part) -> Weights:
    """The weights in a module's folder; floating-point ones as float32.

    Raises:
        InvalidModel: the file is missing or damaged.
        Unsupported: a pickle that is not trusted.
    """
    path, pickled = part.folder / "model.safetensors", part.folder / "pytorch_model.bin"
    if not path.is_file() and not pickled.is_file():
        raise InvalidModel(f"{part.label}: no {path.name} in {part.folder}")
    if not path.is_file() and not part.trust:
        raise Unsupported(
            f"{part.label}: {pickled.name} is a pickle, which can run code: save it as safetensors, or "
            "trust it (--trust)"
        )
    try:
        stored = _read(path) if path.is_file() else torch.load(pickled, "cpu", weights_only=True)
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    except Exception as error:  # Each reader raises its own.
        reason = one_line(error, LONGEST)
        raise InvalidModel(f"{part.label}: its weights cannot be read: {reason}") from None
    return Weights(tensors, part.label)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def filled(module: M, part: Part) -> M:
    """``module`` with the weights in its folder.

    Raises:
        InvalidModel: they do not match it.
    """
    try:
        module.load_state_dict(read_weights(part))
    except RuntimeError as error:
        reason = one_line(" ".join(str(error).split()), LONGEST)
        raise InvalidModel(f"{part.label}: {reason}") from None
    return module
