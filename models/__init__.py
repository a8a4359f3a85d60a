"""Workloads: models with real inputs and a metric. No weights are in the repository."""

if __name__ != "tersor.models":
    raise ImportError(
        f"this folder is the package `tersor.models`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.models`"
    )
