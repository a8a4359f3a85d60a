"""Constants that a runtime reads as plain numbers, though they are stored in fewer bits, are reported; none is
decoded silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tersor.backends import ort
from tersor.ir import Encoding, Graph, parse
from tersor.ir.encodings import FORMS, Dense
from tersor.ops import TABLE
from tersor.pipeline.report import Decoded

READERS = {
    "linear": """graph main(%x: f32[n, 16]) -> (y = %y) {
  @w: f32[16, 16] = dense #DIGEST
  %y: f32[n, 16] = tersor.Linear(%x, @w)
}""",
    "lookup": """graph main(%x: i64[n]) -> (y = %y) {
  @w: f32[16, 16] = dense #DIGEST
  %y: f32[n, 16] = Gather(@w, %x) {axis = 0}
}""",
    "both": """graph main(%x: f32[n, 16], %ids: i64[n]) -> (y = %y, z = %z) {
  @w: f32[16, 16] = dense #DIGEST
  %y: f32[n, 16] = tersor.Linear(%x, @w)
  %z: f32[n, 16] = Gather(@w, %ids) {axis = 0}
}""",
    "sum": """graph main(%x: f32[n, 16]) -> (y = %y) {
  @w: f32[16, 16] = dense #DIGEST
  %y: f32[16, 16] = Add(@w, @w)
}""",
}
W = np.random.default_rng(0).integers(-3, 4, (16, 16)).astype(np.float32)


def encodings() -> Iterator[Encoding]:
    """Examples of every form, and of forms within forms, that are f32[16, 16]."""
    codes = np.abs(W).astype(np.uint8)
    made: list[Encoding] = [
        Dense(W),
        Dense(W.astype(np.float16)),
        Dense(W.astype(np.int8)),
        Dense(codes),
    ]
    for _ in range(2):
        made += [e for form in FORMS.values() for inner in made for e in form.examples(inner)]
    wanted = {e.digest: e for e in made if e.type == Dense(W).type}
    return iter(wanted.values())


def graph_of(reader: str, encoding: Encoding) -> Graph:
    weight = Dense(W)
    text = READERS[reader].replace("DIGEST", weight.digest)
    graph = parse(text, TABLE, {weight.digest: weight})
    graph.set_encoding(graph.constants["w"], encoding)
    return graph


def on_ort(graph: Graph) -> list[Decoded]:
    found: list[Decoded] = []
    ort.lower(graph, decoded=found)
    return found


def on_tvm(graph: Graph) -> list[Decoded]:
    pytest.importorskip("tersor.backends.tvm", reason="TVM is not installed")
    from tersor.backends.tvm.fuse import fuse
    from tersor.backends.tvm.kernels.emit import Isa
    from tersor.backends.tvm.module import lower_all
    from tersor.backends.tvm.ops import RULES, fused

    isa = Isa.of(("avx2", "fma"), 1)
    return lower_all([fuse(graph, isa)], {**RULES, **fused.rules(isa, {})}).decoded


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("lowered", [on_ort, on_tvm])
def test_no_constant_is_decoded_silently(
    reader: str, lowered: Callable[[Graph], list[Decoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Encoding] = []
    for form in FORMS.values():
        monkeypatch.setattr(form, "decode", noting(form.decode, decoded))
    tried = 0
    for encoding in encodings():
        graph = graph_of(reader, encoding)
        decoded.clear()
        rows = lowered(graph)
        # TVM's layers read copies, which may be of several weights side by side.
        told = {row.tensor.removesuffix("_1") for row in rows}
        silent = [e for e in decoded if not e.unmasked.is_dense and e.type == encoding.type]
        assert not silent or told == {"w"}, encoding.describe()
        tried += not encoding.unmasked.is_dense
        for row in rows:
            assert row.bytes == 16 * 16 * 4
            assert row.encoding == row.why.rpartition("reads ")[2]
    assert tried >= 3


def noting(decode: Callable[[Encoding], np.ndarray], into: list[Encoding]) -> object:
    def noted(encoding: Encoding) -> np.ndarray:
        into.append(encoding)
        return decode(encoding)

    return noted


def test_what_is_read_as_it_is_stored_has_no_row_and_what_is_computed_at_load_has_one() -> None:
    from tersor.numerics.affine import quantize_rows

    table = quantize_rows(W)
    assert on_ort(graph_of("lookup", table)) == []
    (row,) = on_ort(graph_of("sum", table))
    assert (row.tensor, row.loaded) == ("w", True)
    assert row.why.startswith("ONNX Runtime has no kernel of Add that reads affine(")
