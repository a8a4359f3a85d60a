"""The result of a compilation: the runnable model, its manifest and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.artifact.manifest import MAX_EXTRA, MAX_MODEL, check_file, read_file, read_manifest
from tersor.artifact.saving import save_folder
from tersor.backend import Session
from tersor.built import Built, Split, Weights
from tersor.errors import InvalidModel, InvalidOption, TersorError
from tersor.files.model import save_file, writing
from tersor.files.storage import locked
from tersor.pipeline import registry
from tersor.pipeline.report import Report


@dataclass
class Artifact:
    """A compiled model.

    Attributes:
        model: for ``ort`` the bytes of an ONNX file, with separate weights if they exceed protobuf's limit;
            for ``tvm`` a shared library and its weights. Separate weights may be memory-mapped.
        runtime: the backend that runs it.
        choice: the backend's settings for building and running it, as plain data.
        manifest: input, interface, recipe, target, versions, as plain data.
        report: what was done and what it cost.
        files: other files of a saved folder (a tokenizer), by file name.
    """

    model: Built
    runtime: str
    choice: dict[str, object]
    manifest: dict[str, Any]
    report: Report = field(default_factory=Report)
    files: dict[str, bytes] = field(default_factory=dict)
    _session: Session | None = None

    def session(self) -> Session:
        """A session of the model under its best settings, opened once. For ONNX Runtime, the session's
        ``own`` is the ``InferenceSession``.

        Raises:
            InvalidModel: the runtime rejects the model.
        """
        if self._session is None:
            self._session = registry.backend(self.runtime).open_session(self.model, self.choice)
        return self._session

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or of another dtype or shape.
        """
        return self.session().run(inputs)

    def save(self, path: str | Path) -> Path:
        """Writes the artifact atomically: if interrupted, ``path`` is either the old or the new one.

        A path ending in ``.onnx``: only the model, as plain ONNX Runtime loads it; weights too large for
        one file go next to it, into ``weights-<hash>.bin``. Any other path: a folder with the model, the
        manifest (hashes, settings) and the report. The parent folder must exist. The same artifact gives
        the same bytes.

        Raises:
            InvalidOption: the path cannot be written, exists and is not an artifact, or ends in .onnx while
                the model is not ONNX.
            InvalidModel: weights are mapped from a file that changed meanwhile.
        """
        path = Path(path)
        check_path(path, self.runtime)
        with writing(path):
            if path.suffix == ".onnx":
                save_file(path, self.model)
            else:
                save_folder(
                    path,
                    self.model,
                    self.files,
                    self.manifest,
                    runtime=self.runtime,
                    choice=self.choice,
                    report=self.report,
                    suffix=registry.backend(self.runtime).SUFFIX,
                )
        return path


def check_path(path: Path, runtime: str) -> None:
    """Checks that a model for ``runtime`` can be saved under such a name.

    Raises:
        InvalidOption: it cannot.
    """
    if path.suffix == ".onnx" and runtime in registry.CODE:
        raise InvalidOption(
            f"cannot write {path}: runtime {runtime} builds a folder, not an ONNX file; "
            "choose a path that does not end in .onnx"
        )


def load(path: str | Path, *, trust: bool = False) -> Artifact:
    """Loads a folder that :meth:`Artifact.save` wrote. Separate weights are memory-mapped.

    ``trust``: load machine code too, which runs when a session is opened.

    Raises:
        InvalidModel: not an artifact, a file does not match the manifest, or machine code that is not
            trusted or that this machine cannot run.
    """
    path = Path(path)
    try:
        # No other process may replace it between reading the manifest and the files.
        with locked(path, shared=True):
            return _load(path, trust)
    except OSError as error:
        raise InvalidModel(
            f"{path} is not an artifact: {error.strerror} ({error.filename})"
        ) from None


def _load(path: Path, trust: bool) -> Artifact:
    manifest = read_manifest(path)
    if manifest.runtime in registry.CODE and not trust:
        raise InvalidModel(
            f"{path} is machine code (runtime {manifest.runtime}), which can do anything when it runs: "
            "if you trust who made it, load it with trust=True (--trust)"
        )
    try:
        backend = registry.backend(manifest.runtime)
        backend.Choice.from_json(manifest.choice)
    except TersorError as error:
        raise InvalidModel(f"{path}: {error}") from None
    own = {manifest.model, *([manifest.weights] if manifest.weights else [])}
    contents = {
        name: read_file(path / name, expected, MAX_MODEL if name == manifest.model else MAX_EXTRA)
        for name, expected in manifest.files.items()
        if name != manifest.weights
    }
    model: Built = contents[manifest.model]
    if manifest.weights is not None:
        check_file(path / manifest.weights, manifest.files[manifest.weights])
        model = Split(contents[manifest.model], Weights.of_file(path / manifest.weights))
    try:
        backend.examine(model)
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from None
    files = {name: contents[file] for name, file in manifest.extras.items() if file not in own}
    return Artifact(
        model, manifest.runtime, manifest.choice, manifest.about, manifest.report, files
    )
