"""The manifest of an artifact: its files, its input model, and how it was built.

It contains no times, paths or machine names: the same compilation gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.built import Built, Split, main_file
from tersor.errors import LONGEST, InvalidModel, one_line
from tersor.files.storage import Stored, open_plain, stored
from tersor.ir import Graph
from tersor.pipeline.report import Report
from tersor.plain import read_plain

NAME = "manifest.json"
FORMAT = 4
MAX_BYTES = 64 << 20  # Of a manifest; a model of 20,000 nodes needs about 1 MB.
_PACKAGES = ("tersor", "numpy", "onnx", "onnxruntime", "apache-tvm", "torch", "transformers")
MAX_MODEL = 1 << 31  # Protobuf's limit.
MAX_EXTRA = 1 << 28  # Tokenizers need a few MB.
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_OWN = ("format", "runtime", "choice", "model", "weights", "extras", "files", "report")


@dataclass(frozen=True)
class Manifest:
    """The manifest of one artifact folder.

    Attributes:
        runtime: the runtime of the model.
        choice: the backend's settings for building and running it, as plain data.
        model: name of the model's file in the folder.
        weights: name of the separate weights file, or None.
        extras: other files (a tokenizer): names in the folder by original names, which may contain folders
            (``1_Pooling/config.json``).
        files: all files, by name in the folder.
        about: the rest, as plain data: input, interface, recipe, target, versions.
        report: what was done.
    """

    runtime: str
    choice: dict[str, object]
    model: str
    weights: str | None
    extras: dict[str, str]
    files: dict[str, Stored]
    about: dict[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    def to_bytes(self) -> bytes:
        """The text of the manifest."""
        data = {
            "format": FORMAT,
            "runtime": self.runtime,
            "choice": self.choice,
            "model": self.model,
            "weights": self.weights,
            "extras": self.extras,
            "files": {name: file.to_json() for name, file in self.files.items()},
            "report": self.report.to_json(),
            **self.about,
        }
        return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True)
class About:
    """The part of a manifest about how a model was built."""

    input: dict[str, Any] = field(default_factory=dict)
    interface: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    target: dict[str, str | list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, int | str] | None = None


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest in an untrusted ``folder``: everything in it is checked.

    Raises:
        InvalidModel: there is none, or it is damaged; says how.
    """
    path = folder / NAME
    try:
        with open_plain(path) as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidModel(
            f"{folder} is not an artifact: {error.strerror} ({error.filename})"
        ) from None
    if len(text) > MAX_BYTES:
        raise InvalidModel(f"{path} is damaged: over {MAX_BYTES >> 20} MB")
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        if data.get("format") != FORMAT:
            raise InvalidModel(
                f"{folder}: artifact format {data.get('format')!r}, this tersor reads {FORMAT}; "
                "compile the model again"
            )
        return _manifest(data)
    except KeyError as error:
        raise InvalidModel(f"{path} is damaged: it has no {one_line(error, LONGEST)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"{path} is damaged: {one_line(error, LONGEST)}") from None


def _manifest(data: dict[str, Any]) -> Manifest:
    files = {_plain_name(name): _stored(name, entry) for name, entry in data["files"].items()}
    extras = {_plain_path(k): v for k, v in data["extras"].items()}
    for name in (data["model"], data["weights"], *extras.values()):
        if name not in files and not (name is None and data["weights"] is None):
            raise ValueError(f"it does not list the file {name!r}")
    return Manifest(
        runtime=_of(str, data, "runtime"),
        choice=_of(dict, data, "choice"),
        model=_of(str, data, "model"),
        weights=data["weights"],
        extras=extras,
        files=files,
        about=_about(data),
        report=read_plain(Report, data["report"]),
    )


def _about(data: dict[str, Any]) -> dict[str, Any]:
    """The remaining entries; those of :class:`About` are checked."""
    about = {k: v for k, v in data.items() if k not in _OWN}
    read_plain(About, {k: v for k, v in about.items() if k in About.__dataclass_fields__})
    return about


def _of(kind: type, data: dict[str, Any], key: str) -> Any:
    if not isinstance(data[key], kind):
        raise ValueError(f"{key} is a {type(data[key]).__name__}")
    return data[key]


def _plain_name(name: str, whole: str | None = None) -> str:
    if name in ("", ".", "..", NAME) or any(c in name for c in "/\\\0"):
        raise ValueError(f"file name {whole or name!r} leads out of the folder")
    return name


def _plain_path(name: str) -> str:
    """A relative path (``1_Pooling/config.json``)."""
    for part in name.split("/"):
        _plain_name(part, whole=name)
    return name


def _stored(name: str, entry: Any) -> Stored:
    sha, size = entry["sha256"], entry["bytes"]
    if not (isinstance(sha, str) and _SHA256.match(sha)):
        raise ValueError(f"the hash of {name!r} is not a SHA-256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"the size of {name!r} is not a number of bytes")
    return Stored(sha, size)


def check_file(path: Path, expected: Stored) -> None:
    """Checks that a file matches the manifest, reading it piece by piece.

    Raises:
        InvalidModel: it is missing, not a regular file, or different.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
        # A file of another size is not read: it may be endless.
        actual = stored(path) if size == expected.size else Stored("", size)
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}; compile the model again") from None
    _compare(path, actual, expected)


def read_file(path: Path, expected: Stored, limit: int) -> bytes:
    """The bytes of a file that matches the manifest.

    Raises:
        InvalidModel: as :func:`check_file`, or it has more than ``limit`` bytes.
    """
    if expected.size > limit:
        raise InvalidModel(f"{path}: {expected.size} bytes, the limit is {limit}")
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size == expected.size else b""
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror}; compile the model again") from None
    _compare(path, Stored(hashlib.sha256(data).hexdigest(), size), expected)
    return data


def _compare(path: Path, actual: Stored, expected: Stored) -> None:
    if actual.size != expected.size:
        raise InvalidModel(
            f"{path}: {actual.size} bytes, the manifest says {expected.size}; compile the model again"
        )
    if actual.sha256 != expected.sha256:
        raise InvalidModel(f"{path}: its hash is not the manifest's; compile the model again")


# -- what a result depends on --------------------------------------------------------------------


def identity(model: Path | Built, *, made_from: str = "onnx") -> dict[str, Any]:
    """Hashes and sizes of a model's file and of the files it refers to.

    Args:
        model: an ONNX file, or a model in memory.
        made_from: ``onnx`` for a model as given; ``graph`` for an export of a graph that was imported from
            another format.

    Raises:
        InvalidModel: it cannot be read.
    """
    if not isinstance(model, Path):
        data = main_file(model)
        files = {} if isinstance(model, bytes) else {model.weights.name: _weights(model)}
        return _identity(made_from, Stored(hashlib.sha256(data).hexdigest(), len(data)), files)
    from tersor.frontends.onnx import external_files, read_model

    # Links of the Hugging Face cache were followed when the model was imported, or refused there.
    proto, folder = read_model(model, allow_hf_cache=True)
    assert folder is not None
    try:
        files = {name: stored(folder.path(name)) for name in external_files(proto)}
        return _identity(made_from, stored(model.resolve()), files)
    except OSError as error:
        raise InvalidModel(f"{model}: {error.strerror} ({error.filename})") from None


def _weights(model: Split) -> Stored:
    return Stored(model.weights.sha256, model.weights.size)


def _identity(made_from: str, main: Stored, external: Mapping[str, Stored]) -> dict[str, Any]:
    files = {name: external[name].to_json() for name in sorted(external)}
    return {"made_from": made_from, **main.to_json(), "external": files}


def identity_size(identity: Mapping[str, Any]) -> int:
    """Total bytes of a model's files, from its :func:`identity`."""
    return int(identity["bytes"] + sum(f["bytes"] for f in identity["external"].values()))


def versions() -> dict[str, str]:
    """Versions of the installed packages that a result depends on."""
    installed = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def interface(graph: Graph) -> dict[str, list[list[str]]]:
    """Names and types of a model's inputs and outputs, in order."""
    inputs, outputs = graph.signature()
    return {
        "inputs": [[name, str(type)] for name, type in inputs],
        "outputs": [[name, str(type)] for name, type in outputs],
    }


def calibration_identity(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any] | None:
    """The number of batches and a hash of all of them; None without batches."""
    sha, count = hashlib.sha256(), 0
    for batch in batches:
        count += 1
        for name in sorted(batch):
            array = batch[name]
            sha.update(json.dumps([name, str(array.dtype), array.shape]).encode())
            plain = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            sha.update(plain)
    return {"batches": count, "sha256": sha.hexdigest()} if count else None
