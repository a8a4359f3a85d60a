"""Verifying artifacts: what is whole passes, whatever is wrong is said in one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tersor
from tersor.artifact import manifest
from tersor.cli.main import app
from tersor.errors import InvalidModel, InvalidOption
from tersor.frontends.onnx import split

Change = Callable[[Path], object]


def model(scale: float = 1.0) -> onnx.ModelProto:
    """y = x W on x[batch, 32]."""
    weight = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32) * scale
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 48])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact in three files and the manifest."""
    monkeypatch.setattr(split, "INLINE_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "given.onnx")
    made = tersor.compile("given.onnx", recipe="fp32", measure=False)
    made.files["tokenizer.json"] = b"{}"
    return made.save(Path("out"))


def only(out: Path, pattern: str) -> Path:
    (found,) = out.glob(pattern)
    return found


def edit(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(out: Path) -> None:
        path = out / manifest.NAME
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


def append(pattern: str) -> Change:
    return lambda out: only(out, pattern).open("ab").write(b"x")


def flip(pattern: str) -> Change:
    def apply(out: Path) -> None:
        path = only(out, pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return apply


def swapped(pattern: str, make: Callable[[Path], object]) -> Change:
    def apply(out: Path) -> None:
        path = only(out, pattern)
        path.unlink()
        make(path)

    return apply


def to_itself(path: Path) -> None:
    """A link to an equal file elsewhere: not even then is it followed."""
    os.symlink("/etc/passwd", path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def rename(key: str, name: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"].pop(data[key])
        data[key] = name

    return edit(change)


ROW = {"candidate": "fp32", "against": "the input"}


def resized(name: str, size: object) -> Change:
    return edit(lambda d: d["files"][d[name]].update(bytes=size))


def retyped(kind: str, value: object) -> Change:
    return edit(lambda d: d["interface"].update({kind: value}))


DEEP = "[" * 100_000
DAMAGED = "out/manifest.json is damaged: "
WRONG: dict[str, tuple[Change, str]] = {
    "no manifest": (lambda o: (o / manifest.NAME).unlink(), "out is not an artifact: No such file or directory (out/manifest.json)"),
    "manifest is a link": (swapped(manifest.NAME, to_itself), "out is not an artifact: a symbolic link (out/manifest.json)"),
    "manifest is a pipe": (swapped(manifest.NAME, os.mkfifo), "out is not an artifact: not a regular file (out/manifest.json)"),
    "manifest is huge": (swapped(manifest.NAME, huge), f"{DAMAGED}over 64 MB"),
    "manifest is no JSON": (lambda o: (o / manifest.NAME).write_text("{"), f"{DAMAGED}Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    "manifest is no text": (lambda o: (o / manifest.NAME).write_bytes(b"\xff\xff{"), DAMAGED),
    "manifest is a list": (lambda o: (o / manifest.NAME).write_text("[]"), f"{DAMAGED}it is not an object"),
    "manifest is deep": (lambda o: (o / manifest.NAME).write_text(DEEP), DAMAGED),
    "another format": (edit(lambda d: d.update(format=1)), "out: artifact format 1, this tersor reads 4; compile the model again"),
    "no files": (edit(lambda d: d.pop("files")), f"{DAMAGED}it has no 'files'"),
    "files are a list": (edit(lambda d: d.update(files=[1])), DAMAGED),
    "model is a number": (edit(lambda d: d.update(model=3)), f"{DAMAGED}it does not list the file 3"),
    "model is not listed": (edit(lambda d: d.update(model="x.onnx")), f"{DAMAGED}it does not list the file 'x.onnx'"),
    "model is a list": (edit(lambda d: d.update(model=[])), DAMAGED),
    "choice is text": (edit(lambda d: d.update(choice="")), f"{DAMAGED}choice is a str"),
    "report is no report": (edit(lambda d: d.update(report={"passes": [{"color": 1}]})), DAMAGED),
    "report counts in words": (edit(lambda d: d["report"]["passes"][0].update(rewrites="many")), f"{DAMAGED}passes.0.rewrites: Input should be a valid integer"),
    "report has another field": (edit(lambda d: d["report"].update(color=1)), f"{DAMAGED}color: "),
    "a decision is a text": (edit(lambda d: d["report"].update(decisions=["kept"])), f"{DAMAGED}decisions.0: "),
    "a decision of no step": (edit(lambda d: d["report"]["decisions"][0].update(step="guess")), f"{DAMAGED}decisions.0.step: Input should be 'import', "),
    "a skip is a pair": (edit(lambda d: d["report"]["passes"][0].update(skips=[["a", "b"]])), f"{DAMAGED}passes.0.skips.0: "),
    "a time is a text": (edit(lambda d: d["report"].update(measured=[{**ROW, "timing": {"before_ms": "1"}}])), f"{DAMAGED}measured.0.timing.before_ms: "),
    "a row has no candidate": (edit(lambda d: d["report"].update(measured=[{"against": "the input"}])), f"{DAMAGED}measured.0.candidate: "),
    "what is decoded has no size": (edit(lambda d: d["report"].update(decoded=[{"tensor": "w"}])), f"{DAMAGED}decoded.0.encoding: "),
    "decisions are a text": (edit(lambda d: d["report"].update(decisions="kept")), f"{DAMAGED}decisions: "),
    "measured is a table": (edit(lambda d: d["report"].update(measured={})), f"{DAMAGED}measured: "),
    "fidelity is a number": (edit(lambda d: d["report"].update(fidelity=1)), f"{DAMAGED}fidelity: "),
    "size is half a byte": (edit(lambda d: d["report"].update(size_after=1.5)), f"{DAMAGED}size_after: "),
    "interface is a number": (retyped("inputs", 3), f"{DAMAGED}interface.inputs: "),
    "interface has no types": (retyped("inputs", [["x"]]), f"{DAMAGED}interface.inputs.0"),
    "input is a name": (edit(lambda d: d.update(input="m.onnx")), f"{DAMAGED}input: "),
    "recipe is a name": (edit(lambda d: d.update(recipe="int8")), f"{DAMAGED}recipe: "),
    "target is a name": (edit(lambda d: d.update(target="cpu")), f"{DAMAGED}target: "),
    "version is a number": (edit(lambda d: d["versions"].update(numpy=2)), f"{DAMAGED}versions.numpy: "),
    "calibration is true": (edit(lambda d: d.update(calibration=True)), f"{DAMAGED}calibration: "),
    "runtime is none": (edit(lambda d: d.update(runtime=None)), f"{DAMAGED}runtime is a NoneType"),
    "no such runtime": (edit(lambda d: d.update(runtime="x")), "out: no runtime 'x'; there are ort"),
    "session is a number": (edit(lambda d: d.update(choice={"session": 1})), "out: its choice is damaged: session: "),
    "choice has another key": (edit(lambda d: d["choice"].update(color=1)), "out: its choice is damaged: color: "),
    "choice of a setting": (edit(lambda d: d["choice"]["lower"].update(linear="x")), "out: its choice is damaged: linear cannot be 'x'"),
    "less than no threads": (edit(lambda d: d["choice"]["session"].update(threads=-5)), "out: its choice is damaged: -5 threads: give 0"),
    "threads by name": (edit(lambda d: d["choice"]["session"].update(threads="two")), "out: its choice is damaged: session.threads: "),
    "a million threads": (edit(lambda d: d["choice"]["session"].update(threads=10**6)), "out: its choice is damaged: 1000000 threads"),
    "optimizers are numbers": (edit(lambda d: d["choice"]["session"].update(disabled_optimizers=[1])), "out: its choice is damaged: session.disabled_optimizers.0: "),
    "name climbs out": (rename("model", "../given.onnx"), f"{DAMAGED}file name '../given.onnx' leads out of the folder"),
    "name is absolute": (rename("weights", "/etc/passwd"), f"{DAMAGED}file name '/etc/passwd' leads out of the folder"),
    "name is the folder": (rename("model", ".."), f"{DAMAGED}file name '..' leads out of the folder"),
    "name is empty": (rename("model", ""), f"{DAMAGED}file name '' leads out of the folder"),
    "name holds a null byte": (rename("model", "a\0b"), f"{DAMAGED}file name 'a\\x00b' leads out of the folder"),
    "name is the manifest's": (rename("model", manifest.NAME), f"{DAMAGED}file name 'manifest.json' leads out of the folder"),
    "extra climbs out of its folder": (edit(lambda d: d["extras"].update({"a/../../x": d["model"]})), f"{DAMAGED}file name 'a/../../x' leads out of the folder"),
    "extra climbs out": (edit(lambda d: d["extras"].update({"../x": d["model"]})), f"{DAMAGED}file name '../x' leads out of the folder"),
    "hash is none": (edit(lambda d: d["files"][d["model"]].update(sha256="0")), DAMAGED),
    "size is negative": (resized("model", -1), DAMAGED),
    "size is text": (resized("model", "9"), DAMAGED),
    "size is absurd": (resized("weights", 1 << 60), "out/weights-"),
    "model has grown": (append("model-*.onnx"), "out/model-"),
    "model is another": (flip("model-*.onnx"), "its hash is not the manifest's; compile the model again"),
    "weights have grown": (append("weights-*.bin"), "out/weights-"),
    "weights are others": (flip("weights-*.bin"), "its hash is not the manifest's; compile the model again"),
    "weights are endless": (swapped("weights-*.bin", huge), f"{1 << 40} bytes, the manifest says 6144; compile the model again"),
    "weights are gone": (lambda o: only(o, "weights-*.bin").unlink(), "No such file or directory; compile the model again"),
    "weights are a link": (swapped("weights-*.bin", to_itself), "; compile the model again"),
    "weights are a pipe": (swapped("weights-*.bin", os.mkfifo), "; compile the model again"),
    "weights are a folder": (swapped("weights-*.bin", Path.mkdir), "; compile the model again"),
    "tokenizer is another": (flip("tokenizer-*.json"), "its hash is not the manifest's; compile the model again"),
    "tokenizer is a link": (swapped("tokenizer-*.json", to_itself), "a symbolic link; compile the model again"),
}  # fmt: skip

# What only opening the model tells.
WRONG_INSIDE: dict[str, tuple[Change, str]] = {
    "no interface": (edit(lambda d: d.pop("interface")), "out: the manifest does not list the inputs"),
    "type is none": (retyped("outputs", [["y", "f33[2]"]]), "out: the manifest does not list the outputs"),
    "another name": (retyped("inputs", [["z", "f32[batch, 32]"]]), "out: the manifest lists the inputs z, the model has x"),
    "another type": (retyped("outputs", [["y", "f16[batch, 48]"]]), "out: the manifest lists y as f16[batch, 48], the model has f32[?, 48]"),
    "another dim": (retyped("outputs", [["y", "f32[batch, 47]"]]), "out: the manifest lists y as f32[batch, 47], the model has f32[?, 48]"),
}  # fmt: skip


def test_what_was_saved_is_whole(out: Path) -> None:
    found = tersor.verify(out, model="given.onnx")
    assert found.notes == []
    assert found.files == {
        p.name: p.stat().st_size
        for p in out.iterdir()
        if p.name not in (manifest.NAME, "README.md")
    }
    assert len(found.files) == 3
    assert tersor.verify(str(out)) == found


@pytest.mark.parametrize("case", [*WRONG, *WRONG_INSIDE])
def test_what_is_wrong_is_said_in_one_line(out: Path, case: str) -> None:
    change, message = {**WRONG, **WRONG_INSIDE}[case]
    change(out)
    with pytest.raises(InvalidModel) as caught:
        tersor.verify(out)
    assert message in str(caught.value)
    if message.startswith("out"):
        assert str(caught.value).startswith(message)
    done = CliRunner().invoke(app, ["verify", "out"], prog_name="tersor")
    assert done.exit_code == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "bug in tersor" not in line


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_not_loaded(out: Path, case: str) -> None:
    change, message = WRONG[case]
    change(out)
    with pytest.raises(InvalidModel) as caught:
        tersor.load(out)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_manifest_does_not_name_is_noted(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    edit(lambda d: d["versions"].update(onnxruntime="0.1"))(out)
    here = manifest.versions()["onnxruntime"]
    assert tersor.verify(out).notes == [
        "notes.txt is in the folder, but not in the manifest",
        "README.md is not the one that was written with this model",
        f"built with onnxruntime 0.1, installed is {here}",
    ]


def test_weights_that_the_manifest_does_not_list_are_refused(out: Path) -> None:
    """The model's own file is what the manifest says, but it reads another one beside it."""

    def drop(data: dict[str, Any]) -> None:
        del data["files"][data["weights"]]
        data["weights"] = None

    name = only(out, "weights-*.bin").name
    edit(drop)(out)
    with pytest.raises(InvalidModel, match=f"refers to '{name}', which the manifest does not list"):
        tersor.verify(out)
    with pytest.raises(InvalidModel, match="ONNX Runtime refuses the model"):
        tersor.load(out).session()


@pytest.mark.parametrize("pattern", ["model-*.onnx", "tokenizer-*.json"])
def test_a_file_of_absurd_size_is_not_read(out: Path, pattern: str) -> None:
    path = only(out, pattern)
    os.truncate(path, 1 << 36)  # sparse: it takes no disk
    edit(lambda d: d["files"][path.name].update(bytes=1 << 36))(out)
    with pytest.raises(InvalidModel, match=f"{path}: {1 << 36} bytes, the limit is"):
        tersor.load(out)


def test_another_input_is_told_apart(out: Path) -> None:
    onnx.save(model(2.0), "other.onnx")
    with pytest.raises(InvalidModel, match=r"out was not built from other\.onnx"):
        tersor.verify(out, model="other.onnx")
    os.rename("given.onnx", "renamed.onnx")
    tersor.verify(out, model="renamed.onnx")


def test_an_input_is_known_by_its_weights_too(out: Path) -> None:
    onnx.save(
        model(), "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0
    )
    made = tersor.convert("apart.onnx").save("apart")
    tersor.verify(made, model="apart.onnx")
    assert json.loads((made / manifest.NAME).read_text())["input"]["external"].keys() == {
        "apart.data"
    }
    data = bytearray(Path("apart.data").read_bytes())
    data[0] ^= 1
    Path("apart.data").write_bytes(data)
    with pytest.raises(InvalidModel, match=r"apart was not built from apart\.onnx"):
        tersor.verify(made, model="apart.onnx")


def test_a_file_alone_is_opened_and_its_weights_are_checked(out: Path) -> None:
    path = tersor.load(out).save("alone.onnx")
    found = tersor.verify(path)
    assert found.notes == ["it has no manifest: only that it loads can be checked"]
    assert sorted(found.files) == ["alone.onnx", only(Path(), "weights-*.bin").name]
    with pytest.raises(InvalidOption, match=r"alone\.onnx has no manifest"):
        tersor.verify(path, model="given.onnx")
    flip("weights-*.bin")(Path())
    with pytest.raises(InvalidModel, match="its hash is not the one in its name"):
        tersor.verify(path)


def test_the_command_says_that_it_is_whole(out: Path) -> None:
    done = CliRunner().invoke(app, ["verify", "out", "--input", "given.onnx"], prog_name="tersor")
    size = sum(tersor.verify(out).files.values()) / 1000
    assert done.exit_code == 0
    assert done.stdout == f"out is intact: 3 files, {size:.3g} kB, built from given.onnx\n"


def test_a_manifest_holds_what_the_result_depends_on_and_no_more(out: Path) -> None:
    data = json.loads((out / manifest.NAME).read_text())
    assert data["interface"] == {
        "inputs": [["x", "f32[batch, 32]"]],
        "outputs": [["y", "f32[batch, 48]"]],
    }
    assert data["input"]["bytes"] == Path("given.onnx").stat().st_size
    assert data["recipe"]["name"] == "fp32" and data["versions"]["onnxruntime"]
    text = (out / manifest.NAME).read_text()
    machine = rf"\b{re.escape(os.uname().nodename)}\b"
    assert str(Path.cwd()) not in text and not re.search(machine, text.replace("tersor", ""))


def test_calibration_is_part_of_what_a_result_depends_on() -> None:
    batches = [{"x": np.ones((2, 32), np.float32)}]
    one = tersor.compile(model(), calibration=batches, measure=False).manifest["calibration"]
    assert one["batches"] == 1
    batches[0]["x"][0, 0] = 2
    other = tersor.compile(model(), calibration=batches, measure=False).manifest["calibration"]
    assert one["sha256"] != other["sha256"]
