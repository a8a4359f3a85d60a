"""Whether what is on disk is what was built."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor.artifact import card
from tersor.artifact import manifest as manifests
from tersor.artifact.identity import input_identity
from tersor.artifact.manifest import Manifest, check_file, read_manifest
from tersor.backend import Backend, Interface
from tersor.errors import InvalidModel, TersorError
from tersor.files.storage import locked, open_plain, stored
from tersor.ir import TensorType, UnknownType, ValueType
from tersor.ir.types import parse_type
from tersor.pipeline import registry

_WEIGHTS = re.compile(r"weights-([0-9a-f]{16})\.bin\Z")


@dataclass(frozen=True)
class Verified:
    """What was found to be as it should.

    Attributes:
        files: bytes by name.
        notes: what is worth knowing and not wrong, a line each.
    """

    files: dict[str, int]
    notes: list[str] = field(default_factory=list)


def verify(path: str | Path, *, model: Any = None) -> Verified:
    """Checks an artifact, or a model file alone.

    Of an artifact: its manifest, every file's size and SHA-256, that the model opens in its runtime
    (machine code is not run: what it tells of itself is read) and has the interface that the manifest
    tells, and where ``model`` is given (an ONNX model or a model
    folder), that the artifact was made of that. A file alone carries no manifest: that it opens, and
    that its weights, if they lie beside it, are those that it names.

    Raises:
        InvalidModel: what is wrong, in one line.
        InvalidOption: ``model`` is given for a file alone.
    """
    path = Path(path)
    if not path.is_dir():
        return _verify_file(path, model)
    with locked(path, shared=True):
        manifest = read_manifest(path)
        for name, expected in manifest.files.items():
            check_file(path / name, expected)
        _check_beside(manifest, path)
        _check_interface(manifest, path)
        notes = [*_unlisted(manifest, path), *_other_versions(manifest)]
    if model is not None:
        _check_input(manifest, path, model)
    return Verified({name: file.size for name, file in manifest.files.items()}, notes)


def _verify_file(path: Path, model: Any) -> Verified:
    from tersor.errors import InvalidOption
    from tersor.frontends.onnx import external_files, read_model

    if model is not None:
        raise InvalidOption(f"{path} carries no manifest, so what it was made of is not known")
    proto, beside = read_model(path)
    assert beside is not None
    sizes = {path.name: path.stat().st_size}
    for name in external_files(proto):
        try:
            found = stored(beside.path(name))
        except OSError as error:
            raise InvalidModel(f"{path}: {name}: {error.strerror}") from None
        named = _WEIGHTS.match(name)
        if named and not found.sha256.startswith(named[1]):
            raise InvalidModel(
                f"{path.parent / name}: its hash is not the one in its name; compile the model again"
            )
        sizes[name] = found.size
    _interface(registry.REFERENCE, path, {}, path)
    return Verified(sizes, ["it carries no manifest: that it opens is all that can be checked"])


def _check_beside(manifest: Manifest, path: Path) -> None:
    model = path / manifest.model
    for name in _backend(manifest.runtime, path).companions(model):
        if name != manifest.weights:
            raise InvalidModel(f"{model} refers to {name!r}, which the manifest does not list")


def _check_interface(manifest: Manifest, path: Path) -> None:
    found = _interface(manifest.runtime, path / manifest.model, manifest.choice, path)
    for kind, values in zip(("inputs", "outputs"), found, strict=True):
        try:
            told = [(name, parse_type(type)) for name, type in manifest.about["interface"][kind]]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidModel(f"{path}: the manifest does not tell the {kind}") from None
        names, have = [n for n, _ in told], [n for n, _ in values]
        if names != have:
            raise InvalidModel(
                f"{path}: the manifest tells the {kind} {', '.join(names)}, "
                f"the model has {', '.join(have)}"
            )
        for (name, wanted), (_, type) in zip(told, values, strict=True):
            if _differ(wanted, type):
                raise InvalidModel(
                    f"{path}: the manifest tells {name} as {wanted}, the model has {type}"
                )


def _differ(told: ValueType, found: ValueType) -> bool:
    if isinstance(told, TensorType) and isinstance(found, TensorType):
        return not told.accepts(found)
    return isinstance(told, TensorType) and found != UnknownType()


def _backend(runtime: str, path: Path) -> Backend:
    try:
        return registry.backend(runtime)
    except TersorError as error:
        raise InvalidModel(f"{path}: {error}") from None


def _interface(
    runtime: str, model: Path, choice: dict[str, object], path: Path
) -> tuple[Interface, Interface]:
    try:
        return _backend(runtime, path).interface(model, choice)
    except TersorError as error:
        raise InvalidModel(f"{path}: {error}") from None


def _check_input(manifest: Manifest, path: Path, model: Any) -> None:
    told = manifest.about.get("input")
    if not isinstance(told, dict) or input_identity(model) != told:
        raise InvalidModel(f"{path} was not made of {_shown(model)}")


def _shown(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else f"this {type(model).__name__}"


def _unlisted(manifest: Manifest, path: Path) -> list[str]:
    known = {manifests.NAME, card.NAME, *manifest.files}
    others = sorted(p.name for p in path.iterdir() if p.name not in known)
    notes = [f"{name} is in the folder, but not in the manifest" for name in others]
    if not _holds(path / card.NAME, card.model_card(manifest)):
        notes.append(f"{card.NAME} is not the one that was written with this model")
    return notes


def _holds(path: Path, text: str) -> bool:
    wanted = text.encode()
    with contextlib.suppress(OSError), open_plain(path) as file:
        return file.read(len(wanted) + 1) == wanted
    return False


def _other_versions(manifest: Manifest) -> list[str]:
    told, here = manifest.about.get("versions"), manifests.versions()
    if not isinstance(told, dict):
        return ["the manifest does not tell what versions made it"]
    return [
        f"made with {package} {told[package]}, here is {here.get(package, 'none')}"
        for package in sorted(told)
        if told[package] != here.get(package)
    ]
