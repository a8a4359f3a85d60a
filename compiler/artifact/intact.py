"""Verification that an artifact on disk is intact."""

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
    """The result of a successful verification.

    Attributes:
        files: sizes in bytes, by name.
        notes: remarks that are not errors, one line each.
    """

    files: dict[str, int]
    notes: list[str] = field(default_factory=list)


def verify(path: str | Path, *, model: Any = None) -> Verified:
    """Checks an artifact, or a single model file.

    For an artifact: the manifest, every file's size and SHA-256, that the model loads in its runtime (machine
    code is not run: only its description is read) with the interface in the manifest, and, if ``model`` (an
    ONNX model or a model folder) is given, that the artifact was built from it. For a single file, which has
    no manifest: that it loads, and that separate weights match the hash in their name.

    Raises:
        InvalidModel: what is wrong, in one line.
        InvalidOption: ``model`` is given for a single file.
    """
    path = Path(path)
    if not path.is_dir():
        return _verify_file(path, model)
    with locked(path, shared=True):
        manifest = read_manifest(path)
        for name, expected in manifest.files.items():
            check_file(path / name, expected)
        _check_companions(manifest, path)
        _check_interface(manifest, path)
        notes = [*_unlisted(manifest, path), *_other_versions(manifest)]
    if model is not None:
        _check_input(manifest, path, model)
    return Verified({name: file.size for name, file in manifest.files.items()}, notes)


def _verify_file(path: Path, model: Any) -> Verified:
    from tersor.errors import InvalidOption
    from tersor.frontends.onnx import external_files, read_model

    if model is not None:
        raise InvalidOption(f"{path} has no manifest, so its input model is unknown")
    proto, folder = read_model(path)
    assert folder is not None
    sizes = {path.name: path.stat().st_size}
    for name in external_files(proto):
        try:
            weights = stored(folder.path(name))
        except OSError as error:
            raise InvalidModel(f"{path}: {name}: {error.strerror}") from None
        named = _WEIGHTS.match(name)
        if named and not weights.sha256.startswith(named[1]):
            raise InvalidModel(
                f"{path.parent / name}: its hash is not the one in its name; compile the model again"
            )
        sizes[name] = weights.size
    _interface(registry.REFERENCE, path, {}, path)
    return Verified(sizes, ["it has no manifest: only that it loads can be checked"])


def _check_companions(manifest: Manifest, path: Path) -> None:
    model = path / manifest.model
    for name in _backend(manifest.runtime, path).companions(model):
        if name != manifest.weights:
            raise InvalidModel(f"{model} refers to {name!r}, which the manifest does not list")


def _check_interface(manifest: Manifest, path: Path) -> None:
    actual = _interface(manifest.runtime, path / manifest.model, manifest.choice, path)
    for kind, values in zip(("inputs", "outputs"), actual, strict=True):
        try:
            listed = [(name, parse_type(type)) for name, type in manifest.about["interface"][kind]]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidModel(f"{path}: the manifest does not list the {kind}") from None
        names, have = [n for n, _ in listed], [n for n, _ in values]
        if names != have:
            raise InvalidModel(
                f"{path}: the manifest lists the {kind} {', '.join(names)}, "
                f"the model has {', '.join(have)}"
            )
        for (name, wanted), (_, type) in zip(listed, values, strict=True):
            if _differ(wanted, type):
                raise InvalidModel(
                    f"{path}: the manifest lists {name} as {wanted}, the model has {type}"
                )


def _differ(listed: ValueType, actual: ValueType) -> bool:
    if isinstance(listed, TensorType) and isinstance(actual, TensorType):
        return not listed.accepts(actual)
    return isinstance(listed, TensorType) and actual != UnknownType()


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
    identity = manifest.about.get("input")
    if not isinstance(identity, dict) or input_identity(model) != identity:
        raise InvalidModel(f"{path} was not built from {_shown(model)}")


def _shown(model: Any) -> str:
    return str(model) if isinstance(model, (str, Path)) else f"this {type(model).__name__}"


def _unlisted(manifest: Manifest, path: Path) -> list[str]:
    known = {manifests.NAME, card.NAME, *manifest.files}
    others = sorted(p.name for p in path.iterdir() if p.name not in known)
    notes = [f"{name} is in the folder, but not in the manifest" for name in others]
    if not _contains(path / card.NAME, card.model_card(manifest)):
        notes.append(f"{card.NAME} is not the one that was written with this model")
    return notes


def _contains(path: Path, text: str) -> bool:
    wanted = text.encode()
    with contextlib.suppress(OSError), open_plain(path) as file:
        return file.read(len(wanted) + 1) == wanted
    return False


def _other_versions(manifest: Manifest) -> list[str]:
    then, here = manifest.about.get("versions"), manifests.versions()
    if not isinstance(then, dict):
        return ["the manifest does not list package versions"]
    return [
        f"built with {package} {then[package]}, installed is {here.get(package, 'none')}"
        for package in sorted(then)
        if then[package] != here.get(package)
    ]
