"""Tersor: a graph-level compiler for model compression."""

from importlib.metadata import version as _version

if __name__ != "tersor":
    raise ImportError(
        f"this folder is the package `tersor`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor`"
    )

__version__ = _version("tersor")

__all__ = ["__version__"]
