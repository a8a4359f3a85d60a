"""Recipes: options that are given take the place of the recipe's own."""

import pytest

from tersor.driver.recipe import Recipe
from tersor.errors import InvalidOption


@pytest.mark.parametrize("key", ["ratio", "prune-structure.ratio"])
def test_of_options_that_rule_each_other_out_the_given_one_stays(key: str) -> None:
    changed = Recipe.of("prune").override({key: "0.25"})
    assert [step.label for step in changed.build()] == [
        "rotate-heads",
        "prune-structure{ratio=0.25}",
    ]


@pytest.mark.parametrize("more", ["macs", "prune-structure.macs"])
def test_two_of_them_are_refused(more: str) -> None:
    told = "pass prune-structure: set only one of ratio and macs"
    with pytest.raises(InvalidOption, match=told):
        Recipe.of("prune").override({"ratio": "0.25", more: "0.5"})


def test_an_option_that_several_passes_share_is_given_to_all() -> None:
    steps = Recipe.of("int8").override({"ignored_scopes": "a.*:b", "granularity": "token"}).build()
    having = [step for step in steps if hasattr(step, "ignored_scopes")]
    assert [type(step).__name__ for step in having] == [
        "WidenLinear",
        "SmoothActivations",
        "QuantizeDynamic",
        "QuantizeEmbedding",
        "QuantizeWeights",
    ]
    assert all(step.ignored_scopes == ("a.*", "b") for step in having)
    assert [s.granularity for s in steps if hasattr(s, "granularity")] == ["token", "token"]


def test_one_of_them_can_be_named() -> None:
    steps = Recipe.of("int8").override({"quantize-weights.ignored_scopes": "a"}).build()
    given = [s.ignored_scopes for s in steps if hasattr(s, "ignored_scopes")]
    assert given == [(), (), (), (), ("a",)]
