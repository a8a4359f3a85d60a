"""Bad input: one line that says what is wrong, an exit code, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]

CALIBRATED = "compile m.onnx out.onnx --calibration"
RECIPE = "no recipe 'int9', did you mean 'int8'?; there are "
PICKLED = "contains pickled objects, which are not loaded because they can run code; save plain arrays by np.savez"
DAMAGED = "not an .npz file, or damaged; save it by np.savez"
DANGLING = (
    "dangling.onnx: Add %y (n[/red]\N{REPLACEMENT CHARACTER}[2J): its operand 'nope' is not defined"
)

# Command, and how its message begins (all of it where that is written out).
BAD = [
    ("compile nope.onnx out.onnx", "nope.onnx: No such file or directory; check the path"),
    ("compile empty.onnx out.onnx", "empty.onnx: empty; export or download the model again"),
    ("compile text.onnx out.onnx", "text.onnx: no"),
    ("compile cut.onnx out.onnx", "cut.onnx: not an ONNX model, or truncated; export or download it again"),
    ("compile pickle.pt out.onnx", "pickle.pt: a Python pickle: pickles can run code and are not read unless trusted: give the torch module itself, or a model folder with safetensors"),
    ("compile dangling.onnx out.onnx", DANGLING),
    ("compile full out.onnx", "full: a folder without config.json; give an ONNX file or a model folder"),
    ("compile m.onnx m.onnx", "cannot write m.onnx: it is the input; choose another path"),
    ("compile m.onnx full", "cannot write full: it exists and is not an artifact; choose another path, or one that ends in .onnx"),
    ("compile m.onnx kept.onnx/out.onnx", "cannot write kept.onnx/out.onnx: "),
    ("compile m.onnx out.onnx --recipe int9", RECIPE),
    ("compile m.onnx out.onnx --recipe nope.toml", "recipe nope.toml: No such file or directory"),
    ("compile m.onnx out.onnx --recipe bad.toml", "recipe bad.toml: passes: "),
    ("compile m.onnx out.onnx --set max_error", "--set 'max_error': write key=value"),
    ("compile m.onnx out.onnx --set a.b=1 --set a.b=2", "--set 'a.b=2': a.b is given twice"),
    ("compile m.onnx out.onnx --set quantize-dynamic.max_eror=1", "recipe int8 has no option 'quantize-dynamic.max_eror', did you mean 'quantize-dynamic.max_error'?"),
    ("compile m.onnx out.onnx --set quantize-dynamic.max_error=high", "pass quantize-dynamic: max_error: "),
    ("compile m.onnx out.onnx --target gpu", "no target 'gpu'"),
    ("compile m.onnx out.onnx --target cpu:avx3", "no ISA level 'avx3', did you mean 'avx2'?; there are avx2, "),
    ("compile m.onnx out.onnx --runtime orrt", "no runtime 'orrt', did you mean 'ort'?"),
    ("compile m.onnx out.onnx --size 8x128", "--size '8x128': write key=value"),
    ("compile m.onnx out.onnx --size batch=x,seq=1", "--size 'batch=x,seq=1': write name=integer, as in batch=8,sequence=128"),
    ("compile m.onnx out.onnx --size bach=1,seq=1", "no open dim 'bach', did you mean 'batch'?; the inputs have batch, seq"),
    ("compile m.onnx out.onnx --size batch=0,seq=1", "dim 'batch' cannot be 0"),
    ("compile m.onnx out.onnx --bucket 8x128", "--bucket '8x128': write key=value"),
    ("compile m.onnx out.onnx --bucket batch=x,seq=1", "--bucket 'batch=x,seq=1': write name=integer, as in batch=8,sequence=128"),
    ("compile m.onnx out.onnx --bucket batch=1,seq=1", "buckets are for runtime tvm: runtime ort has one model for all sizes"),
    (f"{CALIBRATED} nope.npz", "nope.npz: no such file; check the path"),
    (f"{CALIBRATED} full", "full: the folder holds no .npz files"),
    (f"{CALIBRATED} text.onnx", f"text.onnx: {DAMAGED}"),
    (f"{CALIBRATED} cut.npz", f"cut.npz: {DAMAGED}"),
    (f"{CALIBRATED} single.npy", "single.npy: a single array; save it as np.savez(path, input_name=array)"),
    (f"{CALIBRATED} pickled.npz", f"pickled.npz: {PICKLED}"),
    (f"{CALIBRATED} names.npz", "names.npz: the model has no input 'xs', did you mean 'x'?; it takes x"),
    (f"{CALIBRATED} double.npz", "double.npz: array 'x' is f64[3, 5, 16], the model takes f32[batch, seq, 16]"),
    (f"{CALIBRATED} wide.npz", "wide.npz: array 'x' is f32[3, 5, 17], the model takes f32[batch, seq, 16]"),
    (f"{CALIBRATED} none.npz", "none.npz: array 'x' holds no samples along axis 0"),
    ("convert nope.onnx out.onnx", "nope.onnx: No such file or directory; check the path"),
    ("convert dangling.onnx out.onnx", DANGLING),
    ("convert m.onnx missing/out.onnx", "cannot write missing/out.onnx: "),
    ("convert m.onnx out.onnx -p fold-constant", "pass list, column 1: no pass 'fold-constant', did you mean 'fold-constants'?; 'tersor passes' lists them"),
    ("convert m.onnx out.onnx -p smooth-activations --target tpu", "no target 'tpu'"),
    ("convert m.onnx out.onnx --calibration pickled.npz", f"pickled.npz: {PICKLED}"),
    ("inspect nope.onnx", "nope.onnx: No such file or directory; check the path"),
    ("inspect dangling.onnx", DANGLING),
    ("inspect m.onnx dangling.onnx", DANGLING),
    ("inspect full", "full: a folder without config.json; give an ONNX file or a model folder"),
    ("bench nope.onnx m.onnx", "nope.onnx: No such file or directory; check the path"),
    ("bench m.onnx text.onnx", "text.onnx: no"),
    ("bench m.onnx dangling.onnx", DANGLING),
    ("bench m.onnx m.onnx --shape x", "--shape 'x': write key=value"),
    ("bench m.onnx m.onnx --shape x=8,128", "--shape x=8,128: write the dims as in x=8x128"),
    ("bench m.onnx m.onnx --shape x=0x128", "--shape x=0x128: write the dims as in x=8x128"),
    ("bench m.onnx m.onnx --shape xs=1x2x16", "--shape xs=1x2x16: no input 'xs', did you mean 'x'?; there are x"),
    ("bench m.onnx m.onnx --shape x=1x2", "--shape x=1x2: the input is f32[batch, seq, 16]"),
    ("bench m.onnx m.onnx --shape x=1x2x3", "--shape x=1x2x3: 3 does not fit, the input is f32[batch, seq, 16]"),
    ("bench m.onnx m.onnx --inputs double.npz", "double.npz: array 'x' is f64[3, 5, 16], the model takes f32[batch, seq, 16]"),
    ("bench m.onnx m.onnx --inputs pickled.npz", f"pickled.npz: {PICKLED}"),
]  # fmt: skip

USAGE = [
    ("compile", "Missing argument 'IN' (see 'tersor compile --help')"),
    ("compile m.onnx", "Missing argument 'OUT' (see 'tersor compile --help')"),
    ("compile m.onnx out.onnx extra", "Got unexpected extra argument"),
    ("compile m.onnx out.onnx --recipes int8", "No such option: --recipes"),
    ("convert m.onnx out", "Invalid value for 'OUT': out does not end in .onnx (see 'tersor convert --help')"),
    ("inspect m.onnx --top many", "Invalid value for '--top': "),
    ("bench m.onnx", "Missing argument 'B' (see 'tersor bench --help')"),
    ("bench m.onnx m.onnx --pairs 1", "Invalid value for '--pairs': "),
    ("bench m.onnx m.onnx --inputs good.npz --shape x=1x2x16", "Invalid value for '--shape': --inputs brings its own shapes (see 'tersor bench --help')"),
    ("passes all", "Got unexpected extra argument"),
    ("recipes int8", "Got unexpected extra argument"),
    ("targets cpu", "Got unexpected extra argument"),
    ("doctor --fix", "No such option: --fix"),
    ("compil m.onnx", "No such command 'compil'"),
    ("--nope", "No such option: --nope"),
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check(run: Run, files: Path, command: str, message: str, code: int) -> None:
    before = contents(files)
    result = run(*command.split())
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert line.isprintable()
    assert result.stdout == ""
    assert contents(files) == before


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, files: Path, command: str, message: str
) -> None:
    check(run, files, command, message, 1)


@pytest.mark.parametrize(("command", "message"), USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Run, files: Path, command: str, message: str
) -> None:
    check(run, files, command, message, 2)


@pytest.mark.parametrize(
    "command", ["compile dangling.onnx kept.onnx", "convert dangling.onnx kept.onnx"]
)
def test_what_was_there_before_stays(run: Run, files: Path, command: str) -> None:
    assert run(*command.split()).exit_code == 1
    assert Path("kept.onnx").read_text() == "what was there before"


def test_models_with_other_inputs_cannot_be_compared(run: Run, files: Path) -> None:
    import onnx

    model = onnx.load("other.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, "z.onnx")
    check(
        run,
        files,
        "bench m.onnx z.onnx",
        "m.onnx takes x, z.onnx takes z: give models with the same inputs",
        1,
    )


def test_a_pipe_in_place_of_a_file_is_refused(run: Run, files: Path) -> None:
    os.mkfifo("pipe")
    for command, message in [
        ("inspect pipe", "error: pipe: not a regular file; copy it to one first"),
        ("compile m.onnx out.onnx --calibration pipe", "error: pipe: not a regular file"),
    ]:
        result = run(*command.split())
        assert (result.exit_code, result.stderr.strip()) == (1, message)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("two\nlines"), "error: unexpected RuntimeError: two lines; this is a bug in Tersor: run it with --debug and report the output"),
        (RecursionError(), "error: unexpected RecursionError; this is a bug in Tersor: run it with --debug and report the output"),
        (MemoryError(), "error: not enough memory"),
        (ModuleNotFoundError("no", name="onnxruntime"), "error: the package 'onnxruntime' is not installed; 'tersor doctor' lists what is needed"),
        (PermissionError(13, "Permission denied", "m.onnx"), "error: m.onnx: Permission denied"),
    ],
)  # fmt: skip
def test_unexpected_errors_are_one_line_without_debug(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tersor.cli.models.read_imported", fail)
    result = run("inspect", "m.onnx")
    assert (result.exit_code, result.stderr.splitlines()) == (1, [line])


def test_debug_shows_the_traceback_and_the_line(run: Run, files: Path) -> None:
    result = run("inspect", "dangling.onnx", "--debug")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == f"error: {DANGLING}"


def test_errors_of_several_lines_show_the_first(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.errors import PassFailed

    def fail(*_: object) -> None:
        raise PassFailed("the outputs differ\n- old\n+ new")

    monkeypatch.setattr("tersor.cli.models.read_imported", fail)
    assert run("inspect", "m.onnx").stderr == "error: the outputs differ (more with --debug)\n"
    assert "\n+ new\n" in run("inspect", "m.onnx", "--debug").stderr


def test_an_interrupt_is_one_line_and_exit_code_130(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.cli.models.read_imported", interrupt)
    result = run("inspect", "m.onnx")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
