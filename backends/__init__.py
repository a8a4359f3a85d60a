"""Backends: each lowers graphs to one runtime and runs them."""

if __name__ != "tersor.backends":
    raise ImportError(
        f"this folder is the package `tersor.backends`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.backends`"
    )

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Type-checks that both implement the compiler's interface.
    from tersor.backend import BackendOf, ReferenceOf
    from tersor.backends import ort, tvm

    _ort: ReferenceOf[ort.Choice] = ort
    _tvm: BackendOf[tvm.Choice] = tvm
