"""Links TVM's output to a shared library with its own thread pool (``pool.cc``)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc

from tersor.errors import Unsupported, one_line

POOL = Path(__file__).with_name("pool.cc")
_OPTIONS = ["-O2", "-pthread", "-lm", "-Wl,-s"]


def find_compiler() -> str:
    """The C++ compiler, which is used to link.

    Raises:
        Unsupported: there is none.
    """
    compiler: str | None = cc.get_cc()
    if compiler is None:
        raise Unsupported(
            "what TVM compiles is linked by a C++ compiler, and there is none: install g++ or clang"
        )
    return compiler


def linked(executable: Any, compiler: str) -> bytes:
    """The shared library of a result of ``tvm.compile`` or ``relax.build``.

    Raises:
        Unsupported: it cannot be linked here.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "model.so"
        _export(executable, path, compiler)
        return path.read_bytes()


def loaded(executable: Any, threads: int) -> Any:
    """A result of ``tvm.compile``, loaded to be called on ``threads`` threads.

    Raises:
        Unsupported: it cannot be linked here.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "model.so"
        _export(executable, path, find_compiler())
        return load(path, threads)


def load(path: Path, threads: int) -> Any:
    """The module in a library of ours, whose parallel loops run on ``threads`` threads, including the
    caller's, until :func:`release`. The file is no longer needed."""
    module = tvm.runtime.load_module(str(path))
    _use_threads(module, threads)
    return module


def release(module: Any) -> None:
    """Ends a module's threads: TVM keeps loaded libraries until the process ends."""
    _use_threads(module, 1)


def _use_threads(module: Any, count: int) -> None:
    module.get_function("tersor_threads", query_imports=True)(count)


def _export(executable: Any, path: Path, compiler: str) -> None:
    try:
        executable.export_library(str(path), cc=compiler, addons=[str(POOL)], options=_OPTIONS)
    except (RuntimeError, OSError) as error:
        raise Unsupported(f"{compiler} does not link: {one_line(error, 300)}") from None
