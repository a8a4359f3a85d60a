"""The house rules that no linter holds: packages, import directions, words."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tersor.ir.encodings import FORMS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "compiler": "tersor",
    "passes": "tersor.passes",
    "backends": "tersor.backends",
    "models": "tersor.models",
}

# Where each library may be imported, as the beginnings of paths. The second list is for imports
# that run only when they are needed (inside a function) or never (under TYPE_CHECKING).
ONNX = (
    ["compiler/frontends/onnx", "compiler/ops/onnx_schema.py", "backends/ort/", "models/"],
    [],
)
RIM = {
    "onnx": ONNX,
    "onnx_graphsurgeon": ONNX,
    "onnxruntime": (["backends/ort/", "models/"], []),
    "torch": (
        ["compiler/frontends/torch/", "compiler/training/", "backends/torch/", "models/"],
        ["compiler/ops/"],
    ),
    "sentence_transformers": ([], []),  # Its folders are read by hand.
    "tvm": (["backends/tvm/"], []),
    "tvm_ffi": (["backends/tvm/"], []),
}


@dataclass(frozen=True)
class Import:
    file: str  # from the root, with forward slashes
    module: str  # where it is imported, by its name in the package
    target: str
    line: int
    lazy: bool
    typing: bool = False  # under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def module_name(file: str) -> str:
    """`passes/fuse/gelu.py` is `tersor.passes.fuse.gelu`."""
    folder, *rest = file.removesuffix(".py").split("/")
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])


def imports_in(file: str, source: str) -> list[Import]:
    module = module_name(file)
    found: list[Import] = []

    def add(target: str, line: int, lazy: bool, typing: bool) -> None:
        found.append(Import(file, module, target, line, lazy, typing))

    def visit(node: ast.AST, lazy: bool, typing: bool = False) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node.lineno, lazy, typing)
        elif isinstance(node, ast.ImportFrom):
            # `from tersor import passes` is an import of tersor.passes as well.
            for alias in node.names:
                target = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                add(target, node.lineno, lazy, typing)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, True, True)
            for child in node.orelse:
                visit(child, lazy)
        else:
            inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, inner, typing)

    visit(ast.parse(source, file), False)
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def misplaced(item: Import) -> bool:
    """The import breaks a rule of direction, or brings a format in from the rim."""
    target, module = item.target, item.module
    if target.startswith(".") or target.split(".")[0] in FOLDERS:
        return True  # relative, or by the name of the folder
    if within(target, "tersor"):
        if within(module, "tersor.passes"):
            if within(target, "tersor.backends") or within(target, "tersor.models"):
                return True
            gathers = item.file.endswith("/__init__.py") and within(target, module)
            return within(target, "tersor.passes") and not gathers
        if within(module, "tersor.backends"):
            return within(target, "tersor.passes") or within(target, "tersor.models")
        if within(module, "tersor.models"):
            return False
        return any(within(target, FOLDERS[f]) for f in ("passes", "backends", "models"))
    if rule := RIM.get(target.split(".")[0]):
        always, when_lazy = rule
        allowed = always + when_lazy if item.lazy else always
        return not any(item.file.startswith(start) for start in allowed)
    return False


@cache
def sources() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@cache
def listed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages: list[str] = project["tool"]["setuptools"]["packages"]
    assert len(packages) == len(set(packages)), "a package is listed twice"
    return set(packages)


def test_packages_listed_are_those_on_disk() -> None:
    on_disk = {module_name(file) for file in sources() if file.endswith("/__init__.py")}
    assert listed() == on_disk


def test_no_module_lies_outside_a_listed_package() -> None:
    lost = [
        file
        for file in sources()
        if module_name(f"{os.path.dirname(file)}/__init__.py") not in listed()
    ]
    assert not lost


def test_imports_point_the_right_way() -> None:
    bad = [
        str(item)
        for file in sources()
        for item in imports_in(file, (ROOT / file).read_text(encoding="utf-8"))
        if misplaced(item)
    ]
    assert not bad, "\n".join(bad)


def room(module: str) -> str:
    """The folder that a module lies in, of those directly in a package: ``tersor.ops``."""
    top = next(top for top in (*FOLDERS.values(), "tersor")[::-1] if within(module, top))
    if top != "tersor":
        return top
    return ".".join(module.split(".")[:2])


@cache
def arrows() -> list[tuple[str, str]]:
    """Imports among our modules, lazy ones too; those for types alone do not count."""
    modules = {module_name(file) for file in sources()}
    found = set()
    for file in sources():
        for item in imports_in(file, (ROOT / file).read_text(encoding="utf-8")):
            target = item.target
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target not in ("", "tersor", item.module) and not item.typing:
                found.add((item.module, target))
    return sorted(found)


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Some circle; empty where there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for user, used in edges:
        sorter.add(user, used)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle([("a", "b"), ("b", "c"), ("c", "a")])  # The rule itself.
    assert not circle(arrows())


def test_rooms_stand_in_an_order() -> None:
    between = {(room(a), room(b)) for a, b in arrows() if a != "tersor"}
    assert not circle((a, b) for a, b in between if a != b)


CHANGES = {
    "emit",
    "emit_node",
    "erase",
    "erase_constant",
    "set_input",
    "set_outputs",
    "add_input",
    "constant",
}


def test_analysis_only_reads() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.func.attr}"
        for path in sorted((ROOT / "compiler" / "analysis").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CHANGES
    ]
    assert not calls


# Who may ask which form a constant is in: the forms themselves, and what writes each in its own way. All
# others ask what every encoding answers. (Whether an attribute is an encoding at all, anyone may ask.)
ASK_THE_FORM = (
    "compiler/ir/encodings/",
    "backends/ort/constants.py",
    "backends/ort/linear.py",
    "backends/tvm/derive.py",
    "backends/tvm/formats/",
    "backends/tvm/ops/",
)


def questions_of_form(source: str, forms: Collection[str]) -> list[int]:
    """Lines that ask by isinstance, by type() or by a class pattern whether something is one of ``forms``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        asked: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass") and len(node.args) == 2:
                asked = node.args[1]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asked = node
        elif isinstance(node, ast.MatchClass):
            asked = node.cls
        words = ast.walk(asked) if asked is not None else ()
        if any(
            (isinstance(word, ast.Name) and word.id in forms)
            or (isinstance(word, ast.Attribute) and word.attr in forms)
            for word in words
        ):
            found.append(node.lineno)  # type: ignore[attr-defined]
    return found


def test_only_forms_and_those_who_write_them_ask_for_a_form() -> None:
    forms = {form.__name__ for form in FORMS.values()} | {"Layer"}
    assert questions_of_form("isinstance(w.encoding, ir.Affine)", forms)
    assert questions_of_form("isinstance(w, (Dense, int))", forms)
    assert questions_of_form("type(w) is Masked", forms)
    assert questions_of_form("match w:\n    case Cast():\n        pass", forms)
    assert not questions_of_form("isinstance(attr, Encoding)", forms)
    asked = [
        f"{file}:{line}"
        for file in sources()
        if not file.startswith(ASK_THE_FORM)
        for line in questions_of_form((ROOT / file).read_text(encoding="utf-8"), forms)
    ]
    assert not asked


@pytest.mark.parametrize(
    ("file", "source", "ok"),
    [
        ("compiler/pipeline/runner.py", "from tersor.ir import graph", True),
        ("compiler/pipeline/runner.py", "import tersor.passes", False),
        ("compiler/pipeline/runner.py", "from tersor import passes", False),
        ("compiler/pipeline/runner.py", "def f():\n    from tersor.backends import ort", False),
        ("compiler/pipeline/runner.py", "from tersor.models.minilm import build", False),
        ("compiler/pipeline/runner.py", "from . import ir", False),
        ("passes/fuse/gelu.py", "from tersor.ir.graph import Graph", True),
        ("passes/fuse/gelu.py", "from tersor.passes.fuse import attention", False),
        ("passes/fuse/gelu.py", "import tersor.backends.ort", False),
        ("passes/fuse/gelu.py", "import passes", False),
        ("passes/fuse/__init__.py", "from tersor.passes.fuse.gelu import FuseGelu", True),
        ("passes/fuse/__init__.py", "from tersor.passes.quantize import weights", False),
        ("backends/ort/lower.py", "import tersor.ir, onnx, onnxruntime, onnx_graphsurgeon", True),
        ("backends/ort/lower.py", "import tersor.passes.fuse", False),
        ("backends/ort/lower.py", "import torch", False),
        ("models/minilm/build.py", "import torch, onnx, onnxruntime, tersor.passes", True),
        ("compiler/ir/graph.py", "import onnx", False),
        ("compiler/ir/graph.py", "from onnx.helper import make_node", False),
        ("compiler/ops/onnx_schema.py", "import onnx.defs", True),
        ("compiler/frontends/onnx/load.py", "import onnx_graphsurgeon", True),
        ("compiler/frontends/onnx/load.py", "import torch", False),
        ("compiler/frontends/torch/fx.py", "import torch", True),
        ("compiler/ops/matmul.py", "import torch", False),
        ("compiler/ops/matmul.py", "def evaluate(x):\n    import torch", True),
        ("compiler/ops/matmul.py", "if TYPE_CHECKING:\n    import torch", True),
        ("compiler/ir/graph.py", "def f():\n    import torch", False),
        ("compiler/tuning/measure.py", "import onnxruntime", False),
        ("backends/tvm/lower.py", "import tvm", True),
        ("compiler/target.py", "def f():\n    import tvm", False),
    ],
)
def test_the_import_rules_themselves(file: str, source: str, ok: bool) -> None:
    assert any(misplaced(item) for item in imports_in(file, source)) is not ok


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_importing_tersor_loads_no_runtime(tmp_path: Path) -> None:
    code = "import sys, tersor; print(*sorted({'onnx', 'onnxruntime', 'torch', 'tvm', 'tvm_ffi'} & set(sys.modules)))"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_not_imported_by_its_own_name(folder: str) -> None:
    done = python("-c", f"import {folder}", cwd=ROOT)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: this folder is the package")
    assert f"`{FOLDERS[folder]}`, not `{folder}`" in last


def text_files() -> Iterator[Path]:
    """What a reader of the repository sees: sources, documents and settings."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(
            name
            for name in folders
            if name == ".ci"
            or (name not in {"build", "dist", "out", "shared", "__pycache__"} and name[0] != ".")
        )
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix in {".py", ".md", ".toml", ".sh", ".txt", ".yaml"} or (
                name == "Makefile" or path.parent.name == ".ci"
            ):
                yield path


def test_no_file_names_the_place_where_it_was_written() -> None:
    # Put together here, so that this file does not hold them.
    words = ["../" + "shared", "/." + "library", "/" + "work/"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in text_files()
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found
    assert ROOT / "Makefile" in set(text_files())


def test_every_recipe_is_in_the_wheel() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    folders = {name: ROOT / path for name, path in setup["package-dir"].items()}
    packed: set[Path] = set()
    for package in setup["packages"]:
        top = max((n for n in folders if within(package, n)), key=len)
        folder = folders[top].joinpath(*package.removeprefix(top).strip(".").split("."))
        for name, patterns in setup["package-data"].items():
            if name in ("*", package):
                packed.update(file for pattern in patterns for file in folder.glob(pattern))
    recipes = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*.toml")]
    assert len(recipes) >= 3
    assert not [str(f) for f in recipes if f not in packed]
