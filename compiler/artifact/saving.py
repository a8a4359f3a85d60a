"""Puts models on disk so that whoever looks finds the old one or the new one, whole.

Whatever is named by another file (weights by the model, all files by the manifest) has its hash in its
name and is there before it is named; the file that names it is replaced last, in one step. What only
the replaced one named goes after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tersor.artifact import card, manifest
from tersor.artifact.manifest import Manifest
from tersor.artifact.storage import Staging, Stored, locked, stored
from tersor.built import Built, Split, main_file
from tersor.errors import InvalidModel, InvalidOption
from tersor.pipeline.report import Report

_WEIGHTS = re.compile(rb"weights-[0-9a-f]{16}\.bin")
_HASHED = re.compile(r".*-([0-9a-f]{16})(\.[^.]*)?\Z", re.DOTALL)
_MODELS = {".onnx", ".ort", ".pb"}
_CHANGED = "a file that its weights are read from changed meanwhile; run it again"


def save_file(path: Path, model: Built) -> None:
    """The model alone, with the file of its weights beside it where it has one.

    Raises:
        OSError: as the system says.
        InvalidOption: ``path`` is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise InvalidOption(f"cannot write {path}: it is no regular file; choose another path")
    folder = path.parent
    with Staging(folder, path.name) as staging:
        staging.write("model", [main_file(model)])
        kept = set()
        if isinstance(model, Split):
            _write_weights(staging, model)
            kept.add(model.weights.name)
        with locked(folder):
            left = _weights_of(path) - kept
            for name in kept:
                staging.move(name, folder / name)
            staging.move("model", path)
            for name in left - _named_by_models(folder, left):
                (folder / name).unlink(missing_ok=True)


def save_folder(
    path: Path,
    model: Built,
    extras: Mapping[str, bytes],
    about: Mapping[str, Any],
    *,
    runtime: str,
    choice: dict[str, object],
    report: Report,
    suffix: str,
) -> None:
    """An artifact: model, weights, ``extras`` and the manifest, into a new folder or over an artifact.

    Raises:
        OSError: as the system says.
        InvalidOption: ``path`` is something else than an artifact.
    """
    exists = path.exists()
    if exists:
        _check_artifact(path)
    with Staging(path if exists else path.parent, path.name) as staging:
        main = _hashed(f"model{suffix}", main_file(model))
        files = {main: staging.write(main, [main_file(model)])}
        if isinstance(model, Split):
            files[model.weights.name] = _write_weights(staging, model)
        names = {name: _hashed(name, data) for name, data in extras.items()}
        for name, data in extras.items():
            if names[name] not in files:
                files[names[name]] = staging.write(names[name], [data])
        written = Manifest(
            runtime=runtime,
            choice=choice,
            model=main,
            weights=model.weights.name if isinstance(model, Split) else None,
            extras=names,
            files=files,
            about=dict(about),
            report=report,
        )
        staging.write(manifest.NAME, [written.to_bytes()])
        staging.write(card.NAME, [card.model_card(written).encode()])
        if not exists and staging.become(path):
            return
        _check_artifact(path)  # Where there was nothing, another process has put something by now.
        with locked(path):
            left = _old_files(path) - files.keys()
            for name in files:
                staging.move(name, path / name)
            staging.move(manifest.NAME, path / manifest.NAME)
            if _may_replace(path / card.NAME):
                staging.move(card.NAME, path / card.NAME)
            for name in left:
                (path / name).unlink(missing_ok=True)


def _may_replace(readme: Path) -> bool:
    """Whether there is no text of the user's there."""
    if readme.is_symlink() or (readme.exists() and not readme.is_file()):
        return False
    return not readme.exists() or card.is_card(readme.read_bytes())


def _write_weights(staging: Staging, model: Split) -> Stored:
    weights = model.weights
    written = staging.write(weights.name, weights.chunks())
    if written.sha256 != weights.sha256:
        raise InvalidModel(f"the weights are others than a moment ago: {_CHANGED}")
    return written


def _hashed(name: str, data: bytes) -> str:
    """``model.onnx`` -> ``model-0123456789abcdef.onnx``"""
    path = Path(name)
    return f"{path.stem}-{hashlib.sha256(data).hexdigest()[:16]}{path.suffix}"


def _check_artifact(path: Path) -> None:
    if not (path / manifest.NAME).is_file():
        raise InvalidOption(f"{path} exists and is not an artifact: choose another path")


def _old_files(path: Path) -> set[str]:
    """Files of the artifact that is there, and those that a killed process put there unnamed."""
    try:
        listed = set(manifest.read_manifest(path).files)
    except InvalidModel:  # Damaged, or of another format: only what is plainly ours goes.
        listed = set()
    return {p.name for p in path.iterdir() if p.is_file() and (p.name in listed or _is_ours(p))}


def _is_ours(path: Path) -> bool:
    """Whether the name of a file tells that a save put it there, as it does by the hash of what is in it."""
    match = _HASHED.match(path.name)
    with contextlib.suppress(OSError):  # A link, or one that cannot be read, is somebody else's.
        return match is not None and stored(path).sha256.startswith(match[1])
    return False


def _weights_of(path: Path) -> set[str]:
    """Names of weights files of our making that the model at ``path`` refers to."""
    if not any(path.parent.glob("weights-*.bin")):
        return set()
    return {name.decode() for name in _found(path, _WEIGHTS)}


def _named_by_models(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that a model in ``folder`` refers to."""
    wanted = {name.encode() for name in names}
    others = (p for p in folder.iterdir() if p.suffix in _MODELS) if wanted else ()
    return {name.decode() for path in others for name in _found(path, _WEIGHTS) & wanted}


def _found(path: Path, pattern: re.Pattern[bytes]) -> set[bytes]:
    """What of ``pattern`` stands in a file."""
    if not path.is_file() or path.stat().st_size == 0:
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return set(pattern.findall(text))
