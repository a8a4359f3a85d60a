"""TVM computes what ONNX's node cases expect, or says why it does not take them."""

from __future__ import annotations

from itertools import islice

import pytest
from conformance import record
from conformance.cases import Case, load

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from conformance import tvm_suite
from conformance.tvm_suite import KIND, PASSES, WRONG, kind_of, outcome

RECORD = tvm_suite.read()
# A library is compiled for every case: one case in SHARE, spread over all of them, is run here, and all
# of them by `make conformance`.
SHARE, SHARDS = 4, 8


def _cases(shard: int) -> list[Case]:
    return list(islice(load(KIND).values(), shard * SHARE, None, SHARE * SHARDS))


def test_the_record_is_of_the_installed_versions() -> None:
    assert RECORD["versions"] == tvm_suite.versions(), record.AGAIN


def test_the_table_in_the_readme_is_that_of_the_record() -> None:
    assert record.README.read_text() == tvm_suite.readme(RECORD), record.AGAIN


@pytest.mark.slow
def test_the_record_names_every_case_once() -> None:
    refused = [name for names in RECORD["refused"].values() for name in names]
    assert sorted(RECORD["pass"] + refused) == sorted(load(KIND)), record.AGAIN
    assert RECORD["cases"] == len(load(KIND)), record.AGAIN


def test_nine_of_ten_cases_with_known_ops_pass_and_none_is_wrong() -> None:
    assert len(RECORD["pass"]) >= tvm_suite.BAR * RECORD["in_table"]
    assert WRONG not in RECORD["refused"]


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_what_is_recorded_passes_and_the_rest_is_refused_with_a_reason(shard: int) -> None:
    passing = set(RECORD["pass"])
    made = {case.name: outcome(case) for case in _cases(shard)}
    assert {name: text for name, (kind, text) in made.items() if kind == WRONG} == {}
    lost = {name: text for name, (kind, text) in made.items() if kind != PASSES and name in passing}
    assert lost == {}


def test_a_refusal_is_known_by_its_op_and_reason() -> None:
    several = "TVM has no lowering for a b (Loop): it grows; c (com.x.Y): no lowering for this op"
    assert kind_of(several) == "Loop: it grows"
    assert (
        kind_of("input 'x': TVM does not take i4 elements")
        == "input …: TVM does not take i4 elements"
    )
