"""Links what TVM compiles to a shared library that brings its own threads (``pool.cc``)."""

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
    """The C++ compiler, which links.

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
    """The library of what ``tvm.compile`` or ``relax.build`` made.

    Raises:
        Unsupported: it cannot be linked here.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "model.so"
        _export(executable, path, compiler)
        return path.read_bytes()


def loaded(executable: Any, threads: int) -> Any:
    """The module of what ``tvm.compile`` made, to be called here on as many threads.

    Raises:
        Unsupported: it cannot be linked here.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        path = Path(folder) / "model.so"
        _export(executable, path, find_compiler())
        return load(path, threads)


def load(path: Path, threads: int) -> Any:
    """The module in a library of ours, whose parallel loops run on ``threads`` threads, the caller's among
    them, until :func:`release`. The file is not needed any more then."""
    module = tvm.runtime.load_module(str(path))
    _use_threads(module, threads)
    return module


def release(module: Any) -> None:
    """Ends the threads of a module: TVM keeps what was loaded for as long as the process lasts."""
    _use_threads(module, 1)


def _use_threads(module: Any, count: int) -> None:
    module.get_function("tersor_threads", query_imports=True)(count)


def _export(executable: Any, path: Path, compiler: str) -> None:
    try:
        executable.export_library(str(path), cc=compiler, addons=[str(POOL)], options=_OPTIONS)
    except (RuntimeError, OSError) as error:
        raise Unsupported(f"{compiler} does not link: {one_line(error, 300)}") from None
