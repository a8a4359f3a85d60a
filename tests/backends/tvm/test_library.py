"""Libraries: their descriptions, and what is refused before any code is loaded."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

import tersor  # noqa: E402
from tersor.artifact import manifest  # noqa: E402
from tersor.backends.tvm import library, session  # noqa: E402
from tersor.backends.tvm.build import build  # noqa: E402
from tersor.backends.tvm.options import Choice  # noqa: E402
from tersor.built import Split  # noqa: E402
from tersor.errors import InvalidModel, InvalidOption, TersorError, Unsupported  # noqa: E402
from tersor.ir import Dense, Graph, parse  # noqa: E402
from tersor.ops import TABLE  # noqa: E402
from tersor.pipeline import registry  # noqa: E402

FEED = {"x": np.arange(-10, 10, dtype=np.float32).reshape(2, 10) / 3}
_FOOTER = library._LENGTH.size + library._FOOTER.size


def graph(scale: float = 1.0) -> Graph:
    """y = relu(x a + b), n = x a, with constants that are too large to be embedded in the code."""
    result = TABLE.graph("small")
    types = parse("graph g(%x: f32[batch, 10]) -> (x = %x) {}", TABLE).inputs[0].type
    x = result.add_input("x", types)
    a, b = (
        result.constant(
            Dense(np.float32(scale) * np.linspace(low, 1, count, dtype=np.float32)), name
        )
        for low, count, name in ((-1, 10, "a"), (0, 20, "b"))
    )
    doubled = result.emit("Mul", [x, a])
    b = result.emit("Reshape", [b, result.constant(Dense(np.array([2, 10])), "shape")])
    result.set_outputs(
        [result.emit("Relu", [result.emit("Add", [doubled, b])]), doubled], ["y", "n"]
    )
    return result


@pytest.fixture(scope="module")
def built() -> Split:
    result = build(graph())
    assert isinstance(result, Split)
    return result


@pytest.fixture
def out(built: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact in the working folder."""
    monkeypatch.chdir(tmp_path)
    about = {"interface": manifest.interface(graph()), "versions": manifest.versions()}
    choice = Choice.of(tersor.Target.host()).to_json()
    return tersor.Artifact(built, "tvm", choice, about).save("out")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading code fails the test."""

    def load(path: str) -> None:
        raise AssertionError("code was loaded")

    monkeypatch.setattr(tvm.runtime, "load_module", load)


def test_a_library_describes_its_requirements_and_interface(built: Split) -> None:
    description = library.describe(built.data)
    assert [(n, str(t)) for n, t in description.inputs] == [("x", "f32[batch, 10]")]
    assert [n for n, _ in description.outputs] == ["y", "n"]
    assert set(description.features) == tersor.Target.host().features
    assert description.tvm == tvm.__version__ and description.weights == built.weights.name
    assert description.platform == f"{platform.system()} {platform.machine()}"
    assert library.code(built.data)[:4] == b"\x7fELF"
    assert len(built.data) < 0.6 * len(library.code(built.data))


def test_parameters_are_in_one_file_at_the_described_offsets(built: Split) -> None:
    description = library.describe(built.data)
    data = b"".join(built.weights.chunks())
    assert len(data) == built.weights.size == description.weight_bytes
    stored = [
        np.frombuffer(data, p.type.dtype.numpy, int(np.prod(p.type.shape)), p.offset)
        for p in description.parameters
    ]
    expected = [c.numpy() for c in graph().constants.values() if c.numpy().nbytes > 64]
    assert [h.tolist() for h in stored] == [e.reshape(-1).tolist() for e in expected]
    assert all(p.offset % 64 == 0 for p in description.parameters) and len(stored) == 1


def test_without_parameters_there_is_one_file() -> None:
    result = build(parse("graph g(%x: f32[2]) -> (y = %y) { %y: f32[2] = Add(%x, %x) }", TABLE))
    assert isinstance(result, bytes)
    opened = session.open_session(result)
    assert opened.run({"x": np.float32([1, 2])})["y"].tolist() == [2, 4]


def with_description(data: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    """The file with a changed description, and a footer that matches it."""
    (length,) = library._LENGTH.unpack_from(data, len(data) - _FOOTER)
    description = json.loads(data[-_FOOTER - length : -_FOOTER])
    change(description)
    text = json.dumps(description).encode()
    return footed(data[: -_FOOTER - length] + text + library._LENGTH.pack(len(text)))


def footed(body: bytes) -> bytes:
    return body + library._FOOTER.pack(hashlib.sha256(body).digest(), library._MAGIC)


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[:place] + bytes([data[place] ^ 1]) + (data[place + 1 :] if place != -1 else b"")
    )


NO_LIBRARY = "it is not a library that tersor built, or truncated"
DAMAGED = "the library is damaged: its hash does not match; compile the model again"
WORDS = "the library's description is damaged: "
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", NO_LIBRARY),
    "only the magic": (lambda data: data[-8:], NO_LIBRARY),
    "cut short": (lambda data: data[:-1], NO_LIBRARY),
    "cut to the library": (lambda data: data[:2000], NO_LIBRARY),
    "another magic": (flipped(-1), NO_LIBRARY),
    "code is another": (flipped(3000), DAMAGED),
    "words are others": (flipped(-_FOOTER - 5), DAMAGED),
    "length is another": (flipped(-_FOOTER), DAMAGED),
    "length is absurd": (lambda d: footed(d[:-_FOOTER] + b"\xff" * 8), WORDS),
    "length is none": (lambda d: footed(d[:-_FOOTER] + b"\0" * 8), WORDS),
    "hash is another": (flipped(-_FOOTER + 10), DAMAGED),
    "another format": (lambda d: with_description(d, lambda t: t.update(format=9)), "it has library format 9, this tersor reads 4; compile the model again"),
    "no inputs": (lambda d: with_description(d, lambda t: t.pop("inputs")), WORDS + "'inputs'"),
    "an input is a number": (lambda d: with_description(d, lambda t: t.update(inputs=[3])), WORDS),
    "a type is none": (lambda d: with_description(d, lambda t: t.update(inputs=[["x", "f33[2]"]])), WORDS),
    "a type that TVM lacks": (lambda d: with_description(d, lambda t: t.update(inputs=[["x", "string[2]"]])), WORDS + "'string[2]' is not a tensor type of TVM's"),
    "an open parameter": (lambda d: with_description(d, lambda t: t.update(parameters=[["f32[n]", 0]])), WORDS + "f32[n] is not static"),
    "an odd place": (lambda d: with_description(d, lambda t: t.update(parameters=[["f32[4]", 4]])), WORDS + "4 is not a valid offset of a parameter"),
    "a place before the file": (lambda d: with_description(d, lambda t: t.update(parameters=[["f32[4]", -64]])), WORDS + "-64 is not a valid offset of a parameter"),
    "a parameter of later ones": (lambda d: with_description(d, lambda t: t.update(parameters=[["f32[4]", [[["transpose", 0]], [0]]]])), WORDS + "a parameter that is not derived from earlier ones"),
    "a parameter of nothing": (lambda d: with_description(d, lambda t: t.update(parameters=[["f32[4]", [[["transpose", 0]], []]]])), WORDS + "a parameter that is not derived from earlier ones"),
    "steps are a number": (lambda d: with_description(d, lambda t: t["parameters"].append(["f32[4]", [3, [0]]])), WORDS),
    "no function": (lambda d: with_description(d, lambda t: t.update(functions=[])), WORDS + "no function for any sizes"),
    "no function for all": (lambda d: with_description(d, lambda t: t.update(functions=[[{"batch": 2}, [0]]])), WORDS + "no function for any sizes"),
    "a function for other dims": (lambda d: with_description(d, lambda t: t.update(functions=[[{}, [0]], [{"n": 2}, [0]]])), WORDS + "a function whose sizes do not match the open dims"),
    "another function for all": (lambda d: with_description(d, lambda t: t.update(functions=[[{}, [0]], [{}, [0]]])), WORDS + "a function whose sizes do not match the open dims"),
    "a function of other parameters": (lambda d: with_description(d, lambda t: t.update(functions=[[{}, [1]]])), WORDS + "a function of unknown parameters"),
    "a function for sizes that cannot be": (lambda d: with_description(d, lambda t: t.update(inputs=[["x", "f32[9 // n]"]], functions=[[{}, [0]], [{"n": 0}, [0]]])), WORDS),
    "a function for unknown dims": (lambda d: with_description(d, lambda t: t.update(inputs=[["x", "f32[?, n]"]], functions=[[{}, [0]], [{"n": 1}, [0]]])), WORDS + "f32[?, n] has unknown dims"),
    "a size is text": (lambda d: with_description(d, lambda t: t.update(functions=[[{}, [0]], [{"batch": "2"}, [0]]])), WORDS + "'2' is not a valid size"),
    "a place is a flag": (lambda d: with_description(d, lambda t: t.update(functions=[[{}, [True]]])), WORDS + "True is not a valid index of a parameter"),
    "no weights": (lambda d: with_description(d, lambda t: t.update(weights=None)), WORDS + "parameters without weights"),
    "weights elsewhere": (lambda d: with_description(d, lambda t: t.update(weights="../w.bin")), WORDS + "'../w.bin' is not the name of a weights file"),
    "a feature is a number": (lambda d: with_description(d, lambda t: t.update(features=[3])), WORDS + "3 is not text"),
}  # fmt: skip
FOREIGN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "features": (lambda d: with_description(d, lambda t: t.update(features=["avx9", "avx2", "amx_float"])), "it needs amx_float, avx9, which this processor lacks"),
    "platform": (lambda d: with_description(d, lambda t: t.update(platform="Minix vax")), f"it was built for Minix vax, this machine is {platform.system()} {platform.machine()}"),
    "version": (lambda d: with_description(d, lambda t: t.update(tvm="0.26.5")), f"it was built by TVM 0.26.5, installed is {tvm.__version__}; compile the model again"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*DAMAGES, *FOREIGN])
def test_what_cannot_run_is_refused_before_code_is_loaded(
    built: Split, tmp_path: Path, untouched: None, case: str
) -> None:
    change, message = {**DAMAGES, **FOREIGN}[case]
    file = tmp_path / "model.so"
    file.write_bytes(change(built.data))
    built.weights.place(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: session.open_session(file),
        lambda: session.examine(Split(file.read_bytes(), built.weights)),
    ]
    if case in DAMAGES:  # A library for another machine is intact.
        attempts += [
            lambda: session.interface(file, Choice().to_json()),
            lambda: session.companions(file),
        ]
    for attempt in attempts:
        with pytest.raises(InvalidModel) as caught:
            attempt()
        description = str(caught.value)
        assert description.startswith(message) if message == WORDS else description == message, (
            description
        )


def test_another_patch_version_of_tvm_is_accepted(built: Split) -> None:
    major, minor, *_ = tvm.__version__.split(".")
    session.examine(with_description(built.data, lambda t: t.update(tvm=f"{major}.{minor}.99")))


def test_missing_or_truncated_weights_are_refused(
    built: Split, tmp_path: Path, untouched: None
) -> None:
    file = built.place(tmp_path, "model.so")
    weights = tmp_path / built.weights.name
    os.truncate(weights, built.weights.size - 1)
    with pytest.raises(InvalidModel, match=r"its weights are cut short: 79 bytes of 80"):
        session.open_session(file)
    with pytest.raises(InvalidModel, match="its weights are not there"):
        session.open_session(built.data)
    weights.unlink()
    with pytest.raises(InvalidModel, match="its weights are not there: "):
        session.open_session(file)


def test_code_that_the_system_does_not_load_is_reported_in_one_line(built: Split) -> None:
    description = library.describe(built.data)
    broken = Split(library.pack(b"\x7fELF and no more", description), built.weights)
    with pytest.raises(InvalidModel, match="the system does not load the library: ") as caught:
        session.open_session(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"\x7fELF", lzma.compress(b"\x7fELF" * 99)[:-12]], ids=["plain", "cut"]
)
def test_truncated_code_is_refused(built: Split, body: bytes, untouched: None) -> None:
    description = library.describe(built.data)
    whole = library.pack(b"", description)
    rest = whole[len(lzma.compress(b"")) : -40]
    data = body + rest + hashlib.sha256(body + rest).digest() + whole[-8:]
    assert library.describe(data) == description
    with pytest.raises(InvalidModel, match="the library is damaged: "):
        session.open_session(Split(data, built.weights))


def test_machine_code_is_loaded_only_if_trusted(out: Path) -> None:
    with pytest.raises(InvalidModel) as caught:
        tersor.load(out)
    assert str(caught.value) == (
        "out is machine code (runtime tvm), which can do anything when it runs: "
        "if you trust who made it, load it with trust=True (--trust)"
    )
    loaded = tersor.load(out, trust=True)
    assert isinstance(loaded.model, Split) and loaded.model.weights.file is not None
    ort = registry.backend("ort")
    expected = ort.open_session(ort.build(graph())).run(FEED)
    got = loaded.run(FEED)
    for name in ("y", "n"):
        # One product and one sum each, which TVM may fuse: half a unit in the last place.
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("name", ["model-*.so", "weights-*.bin"])
def test_an_artifact_whose_hash_does_not_match_the_manifest_is_refused(
    out: Path, untouched: None, name: str
) -> None:
    (file,) = out.glob(name)
    file.write_bytes(flipped(40)(file.read_bytes()))
    for attempt in (lambda: tersor.load(out, trust=True), lambda: tersor.verify(out)):
        with pytest.raises(InvalidModel) as caught:
            attempt()
        assert (
            str(caught.value) == f"{file}: its hash is not the manifest's; compile the model again"
        )


@pytest.mark.parametrize("case", [*DAMAGES, *FOREIGN])
def test_a_matching_manifest_does_not_excuse_a_damaged_library(
    out: Path, built: Split, untouched: None, case: str
) -> None:
    change, message = {**DAMAGES, **FOREIGN}[case]
    artifact = tersor.load(out, trust=True)
    artifact.model = Split(change(built.data), built.weights)
    artifact.save(out)
    with pytest.raises(InvalidModel, match=r"^out: ") as caught:
        tersor.load(out, trust=True)
    assert str(caught.value).startswith(f"out: {message}")


def test_verifying_runs_nothing(out: Path, untouched: None) -> None:
    result = tersor.verify(out)
    assert sorted(Path(name).suffix for name in result.files) == [".bin", ".so"]
    assert result.notes == []


def test_an_artifact_of_another_interface_is_refused(out: Path, untouched: None) -> None:
    path = out / manifest.NAME
    path.write_text(path.read_text().replace("f32[batch, 10]", "f32[batch, 11]"))
    with pytest.raises(InvalidModel, match="the manifest lists x as f32"):
        tersor.verify(out)


def test_a_library_is_saved_as_a_folder(out: Path) -> None:
    with pytest.raises(InvalidOption) as caught:
        tersor.load(out, trust=True).save("out.onnx")
    assert str(caught.value) == (
        "cannot write out.onnx: runtime tvm builds a folder, not an ONNX file; "
        "choose a path that does not end in .onnx"
    )
    assert not Path("out.onnx").exists()


SEEDED = """
import hashlib, runpy, sys
test = runpy.run_path(sys.argv[1])
made = test["build"](test["graph"]())
print(hashlib.sha256(made.data).hexdigest(), made.weights.name)
"""


def test_equal_graphs_give_equal_bytes(built: Split) -> None:
    for _ in range(3):
        again = build(graph())
        assert isinstance(again, Split)
        assert again.data == built.data and again.weights.name == built.weights.name
    other = build(graph(2.0))
    assert isinstance(other, Split) and other.weights.name != built.weights.name
    command = [sys.executable, "-c", SEEDED, __file__]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    digest = hashlib.sha256(built.data).hexdigest()
    assert done.stdout.split() == [digest, built.weights.name]


def refuses(message: str, **arguments: object) -> None:
    with pytest.raises(TersorError) as caught:
        tersor.convert(graph(), [], runtime="tvm", **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm.support.cc, "get_cc", lambda: None)
    refuses(
        "what TVM compiles is linked by a C++ compiler, and there is none: install g++ or clang"
    )


def test_a_compiler_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm.support.cc, "get_cc", lambda: "/bin/false")
    with pytest.raises(Unsupported, match=r"^/bin/false does not link: .*\Z"):
        build(graph())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names another kind of processor")
def test_another_kind_of_processor_is_refused() -> None:
    message = "runtime tvm links for x86_64 here, and cannot build for aarch64"
    refuses(message, target="cpu:neon")


def test_a_library_cannot_be_portable() -> None:
    refuses("only ONNX files can be portable, and runtime tvm builds a library", portable=True)


def test_a_choice_round_trips_through_json() -> None:
    choice = replace(Choice.of(tersor.Target.parse("cpu:avx2")), threads=3)
    assert Choice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    assert choice.features == ("avx2", "f16c", "fma")
    assert choice.label == "threads=3" and choice.replace(threads=0).label == "default"
