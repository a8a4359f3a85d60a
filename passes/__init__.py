"""Rewrites of the graph, one pass a file."""

if __name__ != "tersor.passes":
    raise ImportError(
        f"this folder is the package `tersor.passes`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.passes`"
    )

from tersor.passes.canonicalize import canonicalization
from tersor.passes.fuse import attention_layout, fusion
from tersor.pipeline import Repeat, Step


def optimization() -> list[Step]:
    """The lossless passes that every compilation starts with, whatever the recipe. Fusion matches canonical
    graphs; the layout of attention changes last, once nothing is left to fuse with it."""
    canonical = canonicalization()
    return [
        Repeat(
            [
                canonical,
                Repeat([*fusion(), canonical]),
                Repeat([*attention_layout(), canonical]),
            ]
        )
    ]
