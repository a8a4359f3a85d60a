"""What runs a graph: each lowers it for one runtime."""

if __name__ != "tersor.backends":
    raise ImportError(
        f"this folder is the package `tersor.backends`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.backends`"
    )

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # That they are what the compiler takes for backends.
    from tersor.backend import BackendOf, ReferenceOf
    from tersor.backends import ort, tvm

    _ort: ReferenceOf[ort.Choice] = ort
    _tvm: BackendOf[tvm.Choice] = tvm
