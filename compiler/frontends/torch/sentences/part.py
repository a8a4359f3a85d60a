"""An entry of ``modules.json`` and what its folder holds, read as it is."""

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
    """One module of a folder.

    Attributes:
        kind: its class's name.
        folder: where its config and weights are.
        label: file, position and class, for messages.
        trust: whether pickled weights are read.
        config: what is left of its config; :meth:`take` takes from it.
    """

    kind: str
    folder: Path
    label: str
    trust: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def read_config(self, names: Sequence[str]) -> None:
        """Reads the first of these files that is there; without one, all options are the defaults.

        Raises:
            InvalidModel: it is no JSON object.
        """
        found = next((p for p in (self.folder / n for n in names) if p.is_file()), None)
        self.config = read_object(found) if found is not None else {}

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """An option of the config, which is done with then.

        Raises:
            InvalidModel: it is missing and has no default, or it is no ``kind``.
        """
        value = self.config.pop(key, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            told = f"no {key}" if value is None else f"a {key} of {one_line(value, LONGEST)!r}"
            raise InvalidModel(f"{self.label}: its config has {told}")
        return value

    def drop(self, *keys: str) -> None:
        """Options that tell what weights or inputs tell too."""
        for key in keys:
            self.config.pop(key, None)

    def done(self) -> None:
        """Raises:
        Unsupported: an option is left over, so that the module does more than is known here.
        """
        if self.config:
            raise self.unknown(f"its option {one_line(min(self.config), LONGEST)!r}")

    def unknown(self, what: str) -> Unsupported:
        return Unsupported(f"{self.label}: {what} is not known here")


def read_parts(directory: Path, kinds: Sequence[str], why_not: dict[str, str]) -> list[Part]:
    """The entries of modules.json, in their order.

    Args:
        kinds: classes that are known.
        why_not: reasons why others are not.

    Raises:
        InvalidModel: it is damaged, or leads out of the folder.
        Unsupported: a class that is not known.
    """
    path = directory / NAME
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(entry["type"]), str(entry["path"])) for entry in held]
    except (ValueError, OSError, TypeError, KeyError, RecursionError):
        raise InvalidModel(f"{path}: not a list of modules with type and path") from None
    parts = []
    for i, (name, inside) in enumerate(listed):
        label = f"{path}: module {i}, {one_line(name, LONGEST)}"
        where = PurePosixPath(inside.replace("\\", "/"))
        if where.is_absolute() or ".." in where.parts or "\0" in inside:
            raise InvalidModel(f"{label}: its path leads out of the folder")
        package, kind = name.partition(".")[0], name.rpartition(".")[2]
        if package != PACKAGE:
            raise Unsupported(
                f"{label}, is code from outside of sentence-transformers, which is not run: make the "
                "model in Python, and give its module"
            )
        if kind not in kinds:
            reason = why_not.get(kind, f"known are {', '.join(sorted(kinds))}")
            raise Unsupported(f"{label}, is not known here: {reason}")
        parts.append(Part(kind, directory.joinpath(*where.parts), label))
    return parts


# -- weights ---------------------------------------------------------------------------------------


class Weights(dict[str, Tensor]):
    """Tensors by name; that one is missing is told as the folder's fault."""

    def __init__(self, held: dict[str, Tensor], label: str) -> None:
        super().__init__(held)
        self.label = label

    def __missing__(self, name: str) -> Tensor:
        raise InvalidModel(f"{self.label}: its weights have no {name}")


def read_weights(part: Part) -> Weights:
    """The tensors of a module's folder, in float32 where they are floats.

    Raises:
        InvalidModel: there are none, or the file is damaged.
        Unsupported: pickles that are not trusted.
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
        held = _read(path) if path.is_file() else torch.load(pickled, "cpu", weights_only=True)
        floats = {k: v.float() if v.is_floating_point() else v for k, v in held.items()}
    except Exception as error:  # Each reader has its own.
        told = one_line(error, LONGEST)
        raise InvalidModel(f"{part.label}: its weights cannot be read: {told}") from None
    return Weights(floats, part.label)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def filled(module: M, part: Part) -> M:
    """``module`` with the weights of its folder.

    Raises:
        InvalidModel: they do not fit it.
    """
    try:
        module.load_state_dict(read_weights(part))
    except RuntimeError as error:
        told = one_line(" ".join(str(error).split()), LONGEST)
        raise InvalidModel(f"{part.label}: {told}") from None
    return module
