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
    told = "pass prune-structure: ratio and macs are given, and one of them says how much goes"
    with pytest.raises(InvalidOption, match=told):
        Recipe.of("prune").override({"ratio": "0.25", more: "0.5"})
