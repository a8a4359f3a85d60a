"""``tersor doctor``: what is installed, what this machine can do, and what stands in the way."""

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

# Distributions that put files into the folder of the package they replace: the last installed wins,
# and uninstalling one breaks the other.
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
_PACKAGES = {"tvm": "apache-tvm"}  # Of the runtimes that not everyone needs.
_SHOWN_EXTRAS = ("torch", "tvm", "models")


@dataclass(frozen=True)
class Needed:
    """A requirement of this package and what is there; ``extra`` is empty where all need it."""

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

    Exits with 1 if something that is needed is missing, too old or does not work.
    """
    python = f"Python {platform.python_version()}"
    say(f"tersor {_version('tersor')}, {python}, {platform.platform()}")
    found = requirements(importlib.metadata.requires("tersor") or ())
    _show_packages(found)
    problems = broken(found)
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
    say("everything that is needed is there, and a model was built and run")


def requirements(lines: Iterable[str]) -> list[Needed]:
    """The package metadata's requirements that matter for use, each with the installed version."""
    found = []
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
        found.append(Needed(package, minimum.group(1) if minimum else "", name, _version(package)))
    return found


def broken(found: Iterable[Needed]) -> list[str]:
    """What is needed by everyone and not there, or too old."""
    return [
        f"{item.package} is {item.problem}: pip install '{item.package}>={item.minimum}'"
        for item in found
        if not item.extra and item.problem
    ]


def conflicts(distributions: Iterable[importlib.metadata.Distribution]) -> list[str]:
    """Installed distributions that overwrite each other's files."""
    names = {re.sub(r"[-_.]+", "-", str(d.metadata["Name"] or "")).lower() for d in distributions}
    return [
        f"{rival} is installed beside {package}, and both own the folder {package}: uninstall both, "
        "then install one"
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


def _show_packages(found: list[Needed]) -> None:
    made = table("package", "installed", "needed", "for")
    for item in found:
        state = item.installed or "-"
        if item.problem and item.installed:
            state += f" ({item.problem})"
        wanted = f">={item.minimum}" if item.minimum else "any"
        made.add_row(item.package, clean(state), wanted, item.extra or "everything")
    show(made)


def _show_machine() -> None:
    from tersor.target import Target, request_amx

    host = Target.host().measured()
    say(f"processor: {host.cpu or 'unknown'}, {host.cores} cores usable")
    say(f"instructions: {' '.join(sorted(host.features)) or 'none that matter are known'}")
    caches = [
        f"L{i} {f'{n // 1024} KiB' if n else 'unknown'}" for i, n in enumerate(host.caches, 1)
    ]
    say(f"caches: {', '.join(caches)}")
    say(f"float32 products: {host.gflops:.0f} GFLOP/s on all cores, measured just now")
    say(f"memory: {host.bandwidth:.1f} GB/s read by one core, measured just now")
    if "amx_tile" in host.features:
        state = "may use" if request_amx() else "may not use (the system refuses it)"
        say(f"AMX: this process {state} its tiles")
    if host.saturates_int8:
        say("int8: products saturate on this processor, so weights are kept to what it can add up")


def _try_runtimes() -> tuple[list[str], list[str]]:
    """(Remarks, problems) of each runtime, from building and running a model of one node. That only
    the reference runtime works is no problem: it is all that everyone needs."""
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
