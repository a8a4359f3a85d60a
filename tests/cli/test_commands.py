"""Commands on good input."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

import tersor
from tersor.cli import doctor
from tersor.cli.report import show_report
from tersor.pipeline import registry
from tersor.pipeline.report import Decoded, Report

Run = Callable[..., Result]
COMMANDS = [
    "compile",
    "convert",
    "tune",
    "inspect",
    "bench",
    "verify",
    "passes",
    "recipes",
    "targets",
    "doctor",
]


def ok(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    lines: list[str] = [line.rstrip() for line in result.stdout.splitlines()]
    return lines


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    backend = registry.backend("ort")
    result: np.ndarray = backend.open_session(path).run({"x": x})["y"]
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    lines = ok(run(command, "--help"))
    assert lines[0].startswith(f"Usage: tersor {command} ")
    assert any("--debug" in line for line in lines)
    assert any("--help" in line for line in lines)


def test_help_lists_every_command(run: Run) -> None:
    lines = ok(run("--help"))
    listed = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in listed] == COMMANDS
    # A sentence that is cut off tells nobody what the command is for.
    assert not [line for line in listed if line.endswith("...")]


def test_version_is_that_of_the_package(run: Run) -> None:
    assert ok(run("--version")) == [f"tersor {tersor.__version__}"]


@pytest.mark.parametrize("out", ["out.onnx", "artifact"])
def test_compile_writes_a_model_that_means_the_same(run: Run, files: Path, out: str) -> None:
    x = np.random.default_rng(2).standard_normal((3, 4, 16)).astype(np.float32)
    lines = ok(run("compile", "m.onnx", out, "--recipe", "fp32", "--no-measure"))
    assert any(line.startswith("mat-mul-to-linear ") for line in lines)
    assert "not measured: measuring was turned off; whether it is faster is unknown" in lines
    assert lines[-1].startswith(f"wrote {out} (")
    expected = outputs(Path("m.onnx"), x)
    got = outputs(Path(out), x) if out.endswith(".onnx") else tersor.load(out).run({"x": x})["y"]
    # float32 sums of 64 products, in another order.
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_compile_passes_calibration_settings_and_portability_on(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    real = tersor.compile

    def watched(*arguments: object, **options: object) -> object:
        seen.update(options, arguments=arguments)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tersor, "compile", watched)
    command = (
        "compile m.onnx out.onnx --calibration good.npz --batch 5 --set min_gain=2.5 "
        "--portable --no-measure"
    )
    ok(run(*command.split(), "--target", "cpu:avx2", "--set", "smooth-activations.alphas=0.5:0.75"))
    assert seen["arguments"] == (Path("m.onnx"), "cpu:avx2", "int8")
    assert seen["portable"] is True and seen["measure"] is False and seen["sizes"] is None
    assert seen["settings"] == {"min_gain": "2.5", "smooth-activations.alphas": "0.5:0.75"}
    assert seen["calibration"] == Path("good.npz") and seen["batch"] == 5


def test_skips_are_counted_and_listed_on_demand(run: Run, files: Path) -> None:
    command = ["compile", "m.onnx", "out.onnx", "--calibration", "good.npz", "--no-measure"]
    # An error that no int8 layer is below, so that all stay in float and say why.
    command += ["--set", "quantize-dynamic.max_error=0", "--set", "quantize-dynamic.min_elements=0"]
    counted, listed = ok(run(*command)), ok(run(*command, "--skips"))
    (line,) = [line for line in counted if line.startswith("rules did not apply in ")]
    skips = [line for line in listed if "}: tersor.Linear %" in line and "(layer.0." in line]
    assert sum(line.endswith(", above max_error 0.0") for line in skips) == 2
    (count,) = [int(word) for word in line.split() if word.isdigit()]
    assert count >= len(skips) and line.endswith(" places: list them with --skips")


@pytest.mark.slow
def test_compile_measures_and_tells_times_and_fidelity(run: Run, files: Path) -> None:
    result = run("compile", "m.onnx", "out.onnx", "--size", "batch=2,seq=4")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert any("batch=2 seq=4" in line and "x " in line for line in lines)
    assert any(line.startswith(("kept ", "kept the input")) for line in lines)
    assert Path("out.onnx").is_file()


def test_convert_runs_just_the_passes_that_are_named(run: Run, files: Path) -> None:
    lines = ok(run("convert", "m.onnx", "out.onnx", "-p", "mat-mul-to-linear, dead-code"))
    assert [line.split()[0] for line in lines[:2]] == ["pass", "mat-mul-to-linear"]
    assert not any(line.startswith("fuse-") for line in lines)
    x = np.ones((1, 2, 16), np.float32)
    # float32 sums of 64 products, in another order.
    np.testing.assert_allclose(
        outputs(Path("out.onnx"), x), outputs(Path("m.onnx"), x), rtol=1e-4, atol=1e-5
    )


def test_convert_alone_canonicalizes_and_fuses(run: Run, files: Path) -> None:
    lines = ok(run("convert", "m.onnx", "out.onnx"))
    assert any(line.startswith("fuse-bias-activation ") for line in lines)
    assert lines[-1] == "wrote out.onnx (the model only)"


def test_inspect_tells_ops_parameters_macs_weights_and_modules(run: Run, files: Path) -> None:
    lines = ok(run("inspect", "m.onnx"))
    assert lines[:2] == ["input   x: f32[batch, seq, 16]", "output  y: f32[batch, seq, 16]"]
    # 16*64 + 64 + 64*16 numbers of 4 bytes; two products of 16*64 a row, at 8 x 128 rows.
    assert "nodes: 4" in lines
    assert "parameters: 2,112 in 8.45 kB" in lines
    assert "MACs: 2048*batch*seq = 2,097,152 at batch=8 seq=128" in lines
    rows = [line.split() for line in lines]
    assert ["MatMul", "2"] in rows and ["Relu", "1"] in rows
    assert ["w1", "16x64", "f32", "4.1", "kB"] in rows
    assert ["layer.0.up", "1,088", "4.35", "kB"] in rows


def test_inspect_compares_two_models(run: Run, files: Path) -> None:
    ok(run("convert", "m.onnx", "out.onnx"))
    lines = ok(run("inspect", "m.onnx", "out.onnx"))
    rows = [line.split() for line in lines]
    assert rows[0] == ["m.onnx", "out.onnx", "ratio"]
    assert ["MatMul", "2", "2"] in rows
    assert "MACs of out.onnx: 2048*batch*seq = 2,097,152 at batch=8 seq=128" in lines
    assert not any(line.startswith(("inputs differ", "outputs differ")) for line in lines)
    lines = ok(run("inspect", "m.onnx", "other.onnx"))
    assert "inputs differ: x: f32[batch, seq, 16] against x: f32[batch, 4]" in lines


def test_inspect_reads_artifacts(run: Run, files: Path) -> None:
    ok(run("compile", "m.onnx", "artifact", "--recipe", "fp32", "--no-measure"))
    assert "parameters: 2,112 in 8.45 kB" in ok(run("inspect", "artifact"))


@pytest.mark.parametrize("skips", [(), ("--skips",)])
def test_what_was_done_is_shown_of_an_artifact_as_when_it_was_compiled(
    run: Run, files: Path, skips: tuple[str, ...]
) -> None:
    command = ["compile", "m.onnx", "artifact", "--calibration", "good.npz", "--no-measure"]
    # One layer stays in float, and says why.
    command += ["--set", "quantize-dynamic.min_elements=600", *skips]
    *compiled, written = ok(run(*command))
    assert written.startswith("wrote ")
    shown = ok(run("inspect", "artifact", *skips))

    def timeless(line: str) -> str:
        return re.sub(r" +(seconds|\d+\.\d\d)?$", "", line)

    assert [*map(timeless, shown[-len(compiled) :])] == [*map(timeless, compiled)]
    assert ("seconds" in compiled[0]) and not any("seconds" in line for line in shown)


def test_constants_that_are_decoded_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoded = Decoded("w", "affine(i4, axis=0)", "no kernel of 4 bits", 1200, True)
    show_report(Report(decoded=[decoded]), skips=False)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert ["w", "affine(i4, axis=0)", "1.2 kB", "at loading", "no kernel of 4 bits"] in [
        [cell.strip() for cell in line if cell] for line in lines
    ]


def test_work_that_is_unknown_is_said_to_be(run: Run, files: Path) -> None:
    import onnx

    model = onnx.load("m.onnx")
    model.graph.node[2].op_type, model.graph.node[2].domain = "Twist", "example.org"
    model.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    onnx.save(model, "opaque.onnx")
    (line,) = [line for line in ok(run("inspect", "opaque.onnx")) if line.startswith("MACs: ")]
    assert "without those of " in line and "1 example.org.Twist" in line and "are unknown" in line


def test_names_in_a_model_are_shown_and_not_obeyed(run: Run, files: Path) -> None:
    import onnx

    model = onnx.load("m.onnx")
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "[bold]w[/red]\x1b[2J\r"
    onnx.save(model, "hostile.onnx")
    result = run("inspect", "hostile.onnx")
    assert result.exit_code == 0
    assert "[bold]w[/red]\N{REPLACEMENT CHARACTER}[2J" in result.stdout
    assert "\x1b" not in result.stdout and "\r" not in result.stdout


@pytest.mark.parametrize("given", [["--shape", "x=2x3x16"], ["--inputs", "good.npz"]])
def test_bench_tells_ratio_and_fidelity(run: Run, files: Path, given: list[str]) -> None:
    result = run("bench", "m.onnx", "m.onnx", "--pairs", "2", *given)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    label = "x=2x3x16" if given[0] == "--shape" else "x=20x5x16"
    assert lines[1].split()[0] == label and lines[1].split()[-1] == "2"
    # The same model on the same input.
    assert any(line.startswith("fidelity: 1") and line.endswith(", by y") for line in lines)
    made_up = any(line.startswith("the inputs were made up") for line in lines)
    assert made_up is (given[0] == "--shape")


def test_bench_says_where_sums_of_a_model_overflow(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    w = numpy_helper.from_array(np.full((4, 2), 127, np.int8), "w")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [3, 2])
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    path = tmp_path / "m.onnx"
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
    host = tersor.Target.parse("cpu:avx2")
    monkeypatch.setattr(tersor.Target, "host", staticmethod(lambda: host))
    result = run("bench", str(path), str(path), "--pairs", "2")
    assert result.exit_code == 0, result.stderr
    told = result.stdout.replace("\n", " ")
    assert "on cpu:avx2 ONNX Runtime adds u8 x s8 products in pairs into 16 bits" in told


def test_shapes_bind_open_dims_for_inputs_that_share_them() -> None:
    from tersor.analysis.feeds import make_feed
    from tersor.cli.bench import bind
    from tersor.errors import InvalidOption
    from tersor.ir import DType, TensorType, symbol
    from tersor.ops import TABLE

    def graph() -> tersor.ir.Graph:
        made = TABLE.graph()
        batch, seq = symbol("batch"), symbol("seq")
        made.add_input("ids", TensorType(DType.I64, (batch, seq)))
        made.add_input("mask", TensorType(DType.I64, (batch, 1 + seq)))
        return made

    one = graph()
    feed = make_feed(one, bind(one, {"ids": (2, 3)}))
    assert {k: v.shape for k, v in feed.items()} == {"ids": (2, 3), "mask": (2, 4)}
    with pytest.raises(InvalidOption, match="3 does not fit, batch is 2 already"):
        bind(graph(), {"ids": (2, 3), "mask": (3, 4)})
    with pytest.raises(InvalidOption, match="does not determine dim 'seq'"):
        bind(graph(), {"mask": (2, 4)})


def test_passes_lists_all_with_options_and_defaults(run: Run) -> None:
    lines = ok(run("passes"))
    assert [line for line in lines if not line.startswith(" ")] == list(registry.passes())
    place = lines.index("fold-constants")
    assert lines[place + 1].strip().startswith("Constant folding")
    assert lines[place + 2].strip() == "byte_budget=4096"
    assert "    alphas=0.3:0.4:0.5:0.6:0.7:0.8:0.9" in lines
    # A pass that nobody described would show what dataclasses or option lists begin with.
    assert not [line for line in lines if line.strip().startswith(("Options:", "No options"))]


def test_every_default_that_is_listed_can_be_given(run: Run) -> None:
    from tersor.cli.lists import options
    from tersor.driver.recipe import build_pass

    for name, kind in registry.passes().items():
        assert build_pass(name, options(kind)) == kind()


def test_recipes_lists_all_with_what_set_takes(run: Run) -> None:
    lines = ok(run("recipes"))
    assert [line for line in lines if not line.startswith(" ")] == list(registry.shipped_recipes())
    settings = [line.split()[1] for line in lines if line.strip().startswith("--set ")]
    assert "quantize-dynamic.max_error=0.1" in settings
    int8 = tersor.Recipe.of("int8")
    given = dict(
        s.split("=", 1) for s in settings if s.split(".")[0] in {p.name for p in int8.passes}
    )
    assert int8.override(given).build() == int8.build()


def test_targets_lists_what_target_takes(run: Run) -> None:
    names = [line for line in ok(run("targets")) if not line.startswith(" ")]
    assert names[0] == "cpu" and names[-1] == "cuda:sm_NN"
    for name in names[:-1]:
        assert tersor.Target.parse(name).name == name


def test_doctor_tells_versions_and_the_machine(run: Run) -> None:
    lines = ok(run("doctor"))
    rows = [line.split() for line in lines]
    assert ["onnxruntime", importlib.metadata.version("onnxruntime")] in [r[:2] for r in rows]
    assert any(line.startswith("processor: ") for line in lines)
    assert any(line.endswith("GFLOP/s on all cores, measured just now") for line in lines)
    assert lines[-1] == "everything needed is installed, and a model was built and run"


def test_doctor_fails_where_something_needed_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = ["numpy>=2.0", "not-there>=1.5", "onnx>=99", 'torch>=999; extra == "torch"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    result = run("doctor")
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("problem: ")] == [
        "problem: not-there is missing: pip install 'not-there>=1.5'",
        "problem: onnx is older than 99: pip install 'onnx>=99'",
    ]


def test_doctor_fails_where_the_runtime_does_not_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise tersor.TersorError("ONNX Runtime refuses the model: because")

    monkeypatch.setattr(registry.backend("ort"), "check", fail)
    result = run("doctor")
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert last == "problem: runtime ort: ONNX Runtime refuses the model: because"


def test_distributions_that_overwrite_each_other_are_told(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu", "numpy"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    found = list(importlib.metadata.distributions(path=[str(tmp_path)]))
    (line,) = doctor.conflicts(found)
    assert line.startswith("onnxruntime-gpu and onnxruntime are both installed into ")
    assert doctor.conflicts([d for d in found if d.metadata["Name"] != "onnxruntime_gpu"]) == []


@pytest.mark.parametrize(
    ("installed", "minimum", "problem"),
    [
        (None, "1.0", "missing"),
        ("2.13.0+cpu", "2.13", None),
        ("2.9.1", "2.13", "older than 2.13"),
        ("5.0.0", "5", None),
        ("1.31.0rc1", "1.31", None),
        ("1.0", "", None),
    ],
)
def test_versions_are_compared_by_their_numbers(
    installed: str | None, minimum: str, problem: str | None
) -> None:
    assert doctor.Needed("x", minimum, "", installed).problem == problem
