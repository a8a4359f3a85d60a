"""``tersor doctor``: installed packages, this machine's abilities, and problems."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

import typer

from tersor.cli.console import clean, say, show, table
from tersor.cli.guard import FAILED, Debug
from tersor.errors import TersorError

# Distributions that install into the folder of another package: the last one wins, and uninstalling one
# breaks the other.
_RIVALS = {
    "onnxruntime": (
        "onnxruntime-gpu",
        "onnxruntime-directml",
        "onnxruntime-openvino",
        "onnxruntime-training",
        "onnxruntime-qnn",
        "ort-nightly",
    ),
    "onnx": ("onnx-weekly",),
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;\s*(.*))?\Z")
_PACKAGES = {"tvm": "apache-tvm"}  # Of optional runtimes.
_SHOWN_EXTRAS = ("torch", "tvm", "models")


@dataclass(frozen=True)
class Needed:
    """A requirement of this package and the installed version; ``extra`` is empty for mandatory ones."""

    package: str
    minimum: str
    extra: str
    installed: str | None

    @property
    def problem(self) -> str | None:
        if self.installed is None:
            return "missing"
        old = self.minimum and _release(self.installed) < _release(self.minimum)
        return f"older than {self.minimum}" if old else None


def doctor(debug: Debug = False) -> None:
    """Show what is installed and what this machine can do.

    Exits with 1 if a required package is missing, too old or does not work.
    """
    python = f"Python {platform.python_version()}"
    say(f"tersor {_version('tersor')}, {python}, {platform.platform()}")
    packages = requirements(importlib.metadata.requires("tersor") or ())
    _show_packages(packages)
    problems = broken(packages)
    say()
    _show_machine()
    say()
    for line in conflicts(importlib.metadata.distributions()):
        say(f"warning: {line}")
    if not problems:
        remarks, problems = _try_runtimes()
        for line in remarks:
            say(f"warning: {line}")
    for line in problems:
        say(f"problem: {line}")
    if problems:
        raise typer.Exit(FAILED)
    say("everything needed is installed, and a model was built and run")


def requirements(lines: Iterable[str]) -> list[Needed]:
    """The requirements in the package metadata, without those for development, with installed versions."""
    needed = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match.group(1) == "tersor":
            continue
        package, wanted, marker = match.groups()
        extra = re.search(r"extra == ['\"]([^'\"]+)", marker or "")
        name = extra.group(1) if extra else ""
        if name and name not in _SHOWN_EXTRAS:
            continue
        minimum = re.search(r">=\s*([0-9.]+)", wanted)
        needed.append(Needed(package, minimum.group(1) if minimum else "", name, _version(package)))
    return needed


def broken(packages: Iterable[Needed]) -> list[str]:
    """Problems with mandatory packages: missing or too old."""
    return [
        f"{item.package} is {item.problem}: pip install '{item.package}>={item.minimum}'"
        for item in packages
        if not item.extra and item.problem
    ]


def conflicts(distributions: Iterable[importlib.metadata.Distribution]) -> list[str]:
    """Installed distributions that overwrite each other's files."""
    names = {re.sub(r"[-_.]+", "-", str(d.metadata["Name"] or "")).lower() for d in distributions}
    return [
        f"{rival} and {package} are both installed into the folder {package}: uninstall both, then "
        "install one"
        for package, rivals in _RIVALS.items()
        for rival in rivals
        if {package, rival} <= names
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Numbers of a version without trailing zeros: ``2.13.0+cpu`` is (2, 13)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(p) for p in match.group(0).split(".")] if match else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _show_packages(packages: list[Needed]) -> None:
    rows = table("package", "installed", "needed", "for")
    for item in packages:
        state = item.installed or "-"
        if item.problem and item.installed:
            state += f" ({item.problem})"
        wanted = f">={item.minimum}" if item.minimum else "any"
        rows.add_row(item.package, clean(state), wanted, item.extra or "everything")
    show(rows)


def _show_machine() -> None:
    from tersor.target import Target, request_amx

    host = Target.host().measured()
    say(f"processor: {host.cpu or 'unknown'}, {host.cores} cores usable")
    say(f"instructions: {' '.join(sorted(host.features)) or 'no known extensions'}")
    caches = [
        f"L{i} {f'{n // 1024} KiB' if n else 'unknown'}" for i, n in enumerate(host.caches, 1)
    ]
    say(f"caches: {', '.join(caches)}")
    say(f"float32 products: {host.gflops:.0f} GFLOP/s on all cores, measured just now")
    say(f"memory: {host.bandwidth:.1f} GB/s read by one core, measured just now")
    if "amx_tile" in host.features:
        say(f"AMX: {'available' if request_amx() else 'not available (the system refuses it)'}")
    if host.saturates_int8:
        say("int8: sums of products can overflow on this processor; Tersor's weights avoid it")


def _try_runtimes() -> tuple[list[str], list[str]]:
    """(Remarks, problems) from building and running a model of one node in each runtime. Only the reference
    runtime is required to work."""
    from tersor.pipeline import registry

    remarks: list[str] = []
    problems: list[str] = []
    for runtime in registry.RUNTIMES:
        needed = runtime == registry.REFERENCE
        if not needed and _version(_PACKAGES[runtime]) is None:
            say(f"runtime {runtime}: not installed (pip install 'tersor[{runtime}]')")
            continue
        try:
            remarks += registry.backend(runtime).check()
            say(f"runtime {runtime}: a model was built and run")
        except TersorError as error:
            (problems if needed else remarks).append(f"runtime {runtime}: {error}")
    return remarks, problems
