"""What a compilation gives: the runnable model, its manifest and its report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor import registry
from tersor.errors import InvalidModel, InvalidOption
from tersor.report import PassReport, Report

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass
class Artifact:
    """A compiled model.

    Attributes:
        model: the serialized model (an ONNX file's bytes for ``ort``).
        runtime: which backend runs it.
        choice: how the backend built it and runs it best, as plain data.
        manifest: versions, target, recipe, hash of the input.
        report: what was done and what it cost.
        files: what goes beside the model in a saved directory (a tokenizer), by file name.
    """

    model: bytes
    runtime: str
    choice: dict[str, Any]
    manifest: dict[str, Any]
    report: Report = field(default_factory=Report)
    files: dict[str, bytes] = field(default_factory=dict)
    _session: Any = None

    def session(self) -> Any:
        """The runtime's own session of the model, under the settings it runs best with; made once."""
        if self._session is None:
            self._session = registry.backend(self.runtime).open_session(self.model, self.choice)
        return self._session

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or of another dtype or shape.
        """
        result: dict[str, np.ndarray] = registry.backend(self.runtime).run(self.session(), inputs)
        return result

    def save(self, path: str | Path) -> Path:
        """Writes the artifact; all or nothing, and what was there before stays until then.

        A path ending in ``.onnx``: the model alone, as plain ONNX Runtime loads it. Any other path: a
        directory with the model, the manifest (hashes, settings) and the report.

        Raises:
            InvalidOption: the path cannot be written, or is a directory that is not an artifact.
        """
        path = Path(path)
        try:
            if path.suffix == ".onnx":
                _write(path, self.model)
            else:
                self._save_directory(path)
        except OSError as error:
            raise InvalidOption(f"cannot write {path}: {error.strerror or error}") from None
        return path

    def _save_directory(self, path: Path) -> None:
        if path.exists() and not (path / MANIFEST).exists():
            raise InvalidOption(f"{path} exists and is not an artifact: choose another path")
        path.mkdir(parents=True, exist_ok=True)
        digest = sha256(self.model)
        # The model has its hash in its name: until the manifest names it, the old pair stays whole.
        name = f"model-{digest[:16]}.onnx"
        _write(path / name, self.model)
        for extra, data in self.files.items():
            _write(path / extra, data)
        manifest = {
            "format": FORMAT,
            "runtime": self.runtime,
            "choice": self.choice,
            "model": name,
            "files": {name: digest, **{k: sha256(v) for k, v in self.files.items()}},
            **self.manifest,
            "report": self.report.to_json(),
        }
        _write(path / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
        for old in path.glob("model-*.onnx"):
            if old.name != name:
                old.unlink()


def load(path: str | Path) -> Artifact:
    """An artifact that :meth:`Artifact.save` wrote as a directory.

    Raises:
        InvalidModel: no artifact there, or a file's hash is not the manifest's.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        name, digests = manifest["model"], manifest["files"]
        held = {n: (path / n).read_bytes() for n in map(_plain_name, digests)}
        model = held.pop(name)
        runtime, choice, report = manifest["runtime"], manifest["choice"], manifest["report"]
    except OSError as error:
        raise InvalidModel(
            f"{path} is not an artifact: {error.strerror} ({error.filename})"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(f"{path / MANIFEST} is damaged: {error!r}") from None
    if manifest.get("format") != FORMAT:
        raise InvalidModel(
            f"{path}: artifact format {manifest.get('format')}, this tersor reads {FORMAT}"
        )
    for n, data in [(name, model), *held.items()]:
        if sha256(data) != digests[n]:
            raise InvalidModel(
                f"{path / n}: its hash is not the manifest's; compile the model again"
            )
    rest = {
        k: v
        for k, v in manifest.items()
        if k not in ("format", "runtime", "choice", "model", "files", "report")
    }
    passes = [PassReport(**p) for p in report.pop("passes")]
    return Artifact(model, runtime, choice, rest, Report(passes=passes, **report), held)


def _plain_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"file name {name!r} leads out of the folder")
    return name


def sha256(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for manifests; only what is installed."""
    found = {}
    for package in ("tersor", "numpy", "onnx", "onnxruntime", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, data: bytes) -> None:
    """Writes beside the target, syncs, then renames: a reader sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
