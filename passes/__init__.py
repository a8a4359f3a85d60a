"""Rewrites of the graph, one pass a file."""

if __name__ != "tersor.passes":
    raise ImportError(
        f"this folder is the package `tersor.passes`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.passes`"
    )

from tersor.passes.canonicalize import canonicalization
from tersor.passes.fuse import attention_layout, fusion
from tersor.pipeline import Pass


def optimization() -> list[Pass]:
    """What every compilation begins with: lossless, whatever the recipe."""
    return [
        *canonicalization(),
        *fusion(),
        *canonicalization(),
        *attention_layout(),
        *canonicalization(),
    ]
