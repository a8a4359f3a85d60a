"""Saves artifacts atomically: a reader sees either the old one or the new one, complete.

A file that another one refers to (weights by the model, all files by the manifest) has its hash in its name
and is written first; the file that refers to it is replaced last, in one step. Files that only the replaced
manifest listed are deleted after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersor.artifact import card, manifest
from tersor.artifact.manifest import Manifest
from tersor.built import Built, Split, main_file
from tersor.errors import InvalidModel, InvalidOption
from tersor.files.model import write_weights
from tersor.files.storage import Staging, locked, stored
from tersor.pipeline.report import Report

_HASHED = re.compile(r".*-([0-9a-f]{16})(\.[^.]*)?\Z", re.DOTALL)


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
    """Writes model, weights, ``extras`` and manifest into a new folder or over an existing artifact.

    Raises:
        OSError: a system error.
        InvalidOption: ``path`` exists and is not an artifact.
    """
    exists = path.exists()
    if exists:
        _check_artifact(path)
    with Staging(path if exists else path.parent, path.name) as staging:
        main = _hashed(f"model{suffix}", main_file(model))
        files = {main: staging.write(main, [main_file(model)])}
        if isinstance(model, Split):
            files[model.weights.name] = write_weights(staging, model)
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
        _check_artifact(path)  # Another process may have created it meanwhile.
        with locked(path):
            obsolete = _old_files(path) - files.keys()
            for name in files:
                staging.move(name, path / name)
            staging.move(manifest.NAME, path / manifest.NAME)
            if _may_replace(path / card.NAME):
                staging.move(card.NAME, path / card.NAME)
            for name in obsolete:
                (path / name).unlink(missing_ok=True)


def _may_replace(readme: Path) -> bool:
    """Whether the file is missing or a model card, not a user's own."""
    if readme.is_symlink() or (readme.exists() and not readme.is_file()):
        return False
    return not readme.exists() or card.is_card(readme.read_bytes())


def _hashed(name: str, data: bytes) -> str:
    """``model.onnx`` -> ``model-0123456789abcdef.onnx``"""
    path = Path(name)
    return f"{path.stem}-{hashlib.sha256(data).hexdigest()[:16]}{path.suffix}"


def _check_artifact(path: Path) -> None:
    if not (path / manifest.NAME).is_file():
        raise InvalidOption(f"{path} exists and is not an artifact: choose another path")


def _old_files(path: Path) -> set[str]:
    """Files of the existing artifact, and unlisted ones that an interrupted save left."""
    try:
        listed = set(manifest.read_manifest(path).files)
    except InvalidModel:  # Damaged, or of another format: recognize files by their names only.
        listed = set()
    return {p.name for p in path.iterdir() if p.is_file() and (p.name in listed or _is_saved(p))}


def _is_saved(path: Path) -> bool:
    """Whether a save wrote the file: its name contains the hash of its content."""
    match = _HASHED.match(path.name)
    with contextlib.suppress(OSError):  # Links and unreadable files were not written by a save.
        return match is not None and stored(path).sha256.startswith(match[1])
    return False
