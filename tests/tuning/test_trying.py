"""Sizes at which a model runs, found from what it says where it does not: models are functions here."""

from __future__ import annotations

import pytest

from tersor.analysis.feeds import Sizes
from tersor.tuning.trying import search_sizes

Sized = dict[str, int]


def stopped(node: str, why: str) -> str:
    return f"Non-zero status code returned while running {node} node. Name:'{node}' Status Message: {why}"


def audio(at: Sizes) -> str | None:
    """A frame of at least 130 samples, after padding by 64 on the right; one state a sample."""
    if at["samples"] <= 64:
        return stopped(
            "Pad", f"post-pad (64) exceeds maximum allowed ({at['samples'] - 1}) for axis 1"
        )
    if at["samples"] < 130:
        return stopped("Conv", f"Invalid input shape: {{{at['samples'] + 64}}}")
    if at["states"] != at["batch"]:
        return stopped("LSTM", f"initial_h has {at['states']} rows, expected {at['batch']}")
    return None


def cached(at: Sizes) -> str | None:
    """The mask covers past and new keys."""
    keys = at["past"] + at["new"]
    return None if at["total"] == keys else stopped("Add", f"{at['total']} by {keys}")


def fixed_inside(at: Sizes) -> str | None:
    """The batch is declared open, and 4 inside."""
    if at["batch"] != 4:
        return stopped(
            "Reshape",
            f"Input shape:{{{at['batch']},{at['length']}}}, requested {{4,{at['length']}}}",
        )
    return None


def short(at: Sizes) -> str | None:
    """A table of 50 positions."""
    if at["length"] > 50:
        return stopped(
            "Gather", f"idx={at['length'] - 1} must be within the inclusive range [-50,49]"
        )
    return None


@pytest.mark.parametrize(
    ("model", "start", "found"),
    [
        (audio, {"batch": 1, "samples": 32, "states": 32}, {"batch": 1, "samples": 256, "states": 1}),
        (audio, {"batch": 8, "samples": 128, "states": 8}, {"batch": 8, "samples": 256, "states": 8}),
        (cached, {"new": 32, "total": 32, "past": 32}, {"new": 32, "total": 64, "past": 32}),
        (fixed_inside, {"batch": 1, "length": 32}, {"batch": 4, "length": 32}),
        (short, {"length": 128}, {"length": 50}),
        (short, {"length": 32}, {"length": 32}),
    ],
)  # fmt: skip
def test_what_the_refusal_says_leads_to_sizes_that_run(model, start: Sized, found: Sized) -> None:  # type: ignore[no-untyped-def]
    tried: list[Sized] = []

    def attempt(at: Sizes) -> str | None:
        tried.append(dict(at))
        refusal: str | None = model(at)
        return refusal

    sizes, refusal = search_sizes(start, attempt)
    assert sizes == found
    assert refusal == (model(start) or "")
    assert len(tried) < 40


def test_a_model_that_never_runs_ends_the_search_and_gives_the_first_refusal() -> None:
    tried: list[Sized] = []

    def attempt(at: Sizes) -> str:
        tried.append(dict(at))
        return stopped("Add", f"{sum(at.values())} by 7")

    sizes, refusal = search_sizes({"a": 1, "b": 32}, attempt, tries=30)
    assert sizes is None and refusal == attempt({"a": 1, "b": 32})
    assert len(tried) <= 32


def test_what_sizes_do_not_change_is_not_tried_for_long() -> None:
    tried: list[Sized] = []

    def attempt(at: Sizes) -> str:
        tried.append(dict(at))
        return stopped("If", "the rate must be 8000 or 16000")

    assert search_sizes({"a": 1, "b": 32}, attempt)[0] is None
    assert len(tried) < 20
