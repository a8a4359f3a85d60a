"""Tersor: a graph-level compiler for model compression."""

from importlib.metadata import version as _version

if __name__ != "tersor":
    raise ImportError(
        f"this folder is the package `tersor`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor`"
    )

__version__ = _version("tersor")

from tersor.artifact import Artifact, Verified, load, verify
from tersor.driver.compilation import compile, convert, inspect, tune
from tersor.driver.recipe import Recipe
from tersor.errors import TersorError
from tersor.pipeline.report import Report, TuneReport
from tersor.target import Target
from tersor.trimming.trim import trim_vocabulary

__all__ = [
    "Artifact", "Recipe", "Report", "Target", "TersorError", "TuneReport", "Verified", "__version__",
    "compile", "convert", "inspect", "load", "trim_vocabulary", "tune", "verify",
]  # fmt: skip
