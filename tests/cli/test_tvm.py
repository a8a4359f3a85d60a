"""Commands on what runtime tvm builds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import two_layers
from typer.testing import CliRunner, Result

pytest.importorskip("tvm")

import tersor
from tersor.cli.main import app
from tersor.tuning import search

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of machine code, which tests copy."""
    folder = tmp_path_factory.mktemp("code")
    onnx.save(two_layers(), folder / "m.onnx")
    command = "compile m.onnx code --recipe fp32 --runtime tvm --no-measure"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, command.split(), prog_name="tersor")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "wrote code (an artifact: tersor.load reads it)"
    return folder / "code"


@pytest.fixture
def code(built: Path, files: Path) -> Path:
    """An artifact of machine code in the working folder."""
    return Path(shutil.copytree(built, files / "code"))


def refused(result: Result) -> str:
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def test_compile_measures_against_the_input(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SEARCH_PAIRS", 2)
    monkeypatch.setattr("tersor.driver.choosing.FINAL_PAIRS", 2)
    arguments = ("--recipe", "fp32", "--runtime", "tvm", "--size", "batch=2,seq=8")
    result = run("compile", "m.onnx", "out", *arguments)
    assert result.exit_code == 0, result.stderr
    kept = [line for line in result.stdout.splitlines() if line.startswith("kept ")]
    made = tersor.load("out", trust=True)
    # Which of them is faster is the machine's to say.
    by_runtime = {"tvm": "kept fp32", "ort": "kept the input: no candidate is faster"}
    assert kept == [by_runtime[made.runtime]]


def test_bench_compares_runtimes_where_the_code_is_trusted(
    run: Run, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrusted = refused(run("bench", "m.onnx", "code", "--pairs", "2"))
    assert untrusted.startswith("error: code is machine code (runtime tvm), which can do anything")
    for sides in (("m.onnx", "code"), ("code", "m.onnx"), ("code", "code")):
        result = run("bench", *sides, "--trust", "--pairs", "2", "--shape", "x=2x3x16")
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[1].split()[0] == "x=2x3x16" and lines[1].split()[-1] == "2"
        assert any(line.startswith("fidelity: 1") or "fidelity: 0.99999" in line for line in lines)


def test_bench_of_code_takes_arrays_from_a_file(run: Run, code: Path) -> None:
    arguments = ("bench", "code", "code", "--trust", "--pairs", "2", "--inputs")
    assert run(*arguments, "good.npz").exit_code == 0
    wrong = "error: wide.npz: array 'x' is f32[3, 5, 17], the model takes f32[batch, seq, 16]"
    assert refused(run(*arguments, "wide.npz")) == wrong


def test_compile_builds_buckets(run: Run, files: Path) -> None:
    command = "compile m.onnx out --recipe fp32 --runtime tvm --no-measure --bucket seq=4,batch=2"
    assert run(*command.split(), "--bucket", "batch=1,seq=1").exit_code == 0
    made = tersor.load("out", trust=True)
    assert made.choice["buckets"] == [[["batch", 2], ["seq", 4]], [["batch", 1], ["seq", 1]]]
    unknown = refused(run(*command.split(), "--bucket", "batch=1,sq=1"))
    assert unknown == "error: no open dim 'sq', did you mean 'seq'?; the inputs have batch, seq"


def test_verify_needs_no_trust(run: Run, code: Path) -> None:
    result = run("verify", "code", "--input", "m.onnx")
    assert result.exit_code == 0 and result.stdout.startswith("code is intact: 2 files, ")
    library = next(code.glob("*.so"))
    library.write_bytes(library.read_bytes()[:-1])
    assert "the manifest says" in refused(run("verify", "code"))


def test_inspect_has_no_graph_to_show_but_what_was_done(run: Run, code: Path) -> None:
    result = run("inspect", "code")
    first, *others = result.stdout.splitlines()
    assert result.exit_code == 0
    assert first == "code is machine code (runtime tvm), which has no graph"
    assert any(line.startswith("not measured: ") for line in others)
    assert refused(run("inspect", "m.onnx", "code")) == (
        "error: code is machine code, which has no graph: give the model that it was built from"
    )


@pytest.mark.parametrize("command", ["compile", "convert"])
def test_a_library_is_no_onnx_file(run: Run, files: Path, command: str) -> None:
    assert refused(run(command, "m.onnx", "out.onnx", "--runtime", "tvm")) == (
        "error: cannot write out.onnx: runtime tvm builds a folder, not an ONNX file; "
        "choose a path that does not end in .onnx"
    )
    assert refused(run(command, "m.onnx", "out", "--runtime", "tvm", "--portable")) == (
        "error: only ONNX files can be portable, and runtime tvm builds a library"
    )


def test_convert_writes_a_folder_that_runs(run: Run, files: Path) -> None:
    result = run("convert", "m.onnx", "out", "--runtime", "tvm")
    assert result.exit_code == 0, result.stderr
    x = np.load("good.npz")["x"]
    got = tersor.load("out", trust=True).run({"x": x})["y"]
    expected = tersor.convert("m.onnx", []).run({"x": x})["y"]
    # Sums of 16 and of 64 products in another order.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_doctor_tells_that_tvm_runs(run: Run) -> None:
    result = run("doctor")
    assert "runtime tvm: a model was built and run" in result.stdout.splitlines()


def test_doctor_warns_where_there_is_no_compiler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    monkeypatch.setattr(tvm.support.cc, "get_cc", lambda: None)
    result = run("doctor")
    assert result.exit_code == 0
    assert (
        "warning: runtime tvm: what TVM compiles is linked by a C++ compiler, and there is none: "
        "install g++ or clang"
    ) in result.stdout.splitlines()


def test_doctor_does_without_tvm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.cli import doctor

    monkeypatch.setattr(doctor, "_PACKAGES", {"tvm": "tvm-that-is-not-there"})
    result = run("doctor")
    assert result.exit_code == 0
    assert "runtime tvm: not installed (pip install 'tersor[tvm]')" in result.stdout.splitlines()
