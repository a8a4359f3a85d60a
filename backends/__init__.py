"""What runs a graph: each lowers it for one runtime."""

if __name__ != "tersor.backends":
    raise ImportError(
        f"this folder is the package `tersor.backends`, not `{__name__}`: "
        "install the project (`pip install -e .`) and `import tersor.backends`"
    )
