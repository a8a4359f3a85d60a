"""Rewrites of the graph, one pass a file."""

if __name__ != "tersor.passes":
    raise ImportError(
        f"this folder is the package `tersor.passes`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.passes`"
    )
