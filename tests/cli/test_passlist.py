"""The text form of pass lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.cli.passlist import (
    PassText,
    build_passes,
    describe,
    parse_pass_list,
    print_pass_list,
)
from tersor.errors import InvalidOption
from tersor.pipeline import registry

# What needs no quotes: any text without blanks and the grammar's own characters.
WORDS = st.text(
    st.characters(exclude_characters=',{}=:"', exclude_categories=("Z", "C")), min_size=1
)
VALUES = st.lists(st.text(), max_size=3).map(tuple)
PASSES = st.lists(
    st.builds(
        PassText,
        WORDS,
        st.dictionaries(WORDS, VALUES, max_size=3).map(lambda d: tuple(d.items())),
    ),
    min_size=1,
    max_size=3,
)


@given(PASSES)
def test_what_is_printed_reads_back_the_same(items: list[PassText]) -> None:
    assert parse_pass_list(print_pass_list(items)) == items


@given(st.text())
def test_any_text_is_read_or_refused_by_its_column(text: str) -> None:
    try:
        items = parse_pass_list(text)
    except InvalidOption as error:
        assert str(error).startswith("pass list, column ")
    else:
        assert parse_pass_list(print_pass_list(items)) == items


@given(
    st.integers(0, 10**9),
    st.floats(0, 1),
    st.lists(st.text(min_size=1), max_size=3).map(tuple),
)
def test_built_passes_read_back_the_same(
    elements: int, error: float, scopes: tuple[str, ...]
) -> None:
    kind = registry.find_pass("quantize-dynamic")
    step = kind(min_elements=elements, max_error=error, ignored_scopes=scopes)  # type: ignore[call-arg]
    assert build_passes(print_pass_list(describe([step]))) == [step]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dead-code", [PassText("dead-code")]),
        ("a,b", [PassText("a"), PassText("b")]),
        (" a { } , b ", [PassText("a"), PassText("b")]),
        ("a{b=1}", [PassText("a", (("b", ("1",)),))]),
        ("a{b=1,other=x:y}", [PassText("a", (("b", ("1",)), ("other", ("x", "y"))))]),
        ("a{b=}", [PassText("a", (("b", ()),))]),
        ('a{b=""}', [PassText("a", (("b", ("",)),))]),
        ('a{b="x:y, \\"z\\"":w}', [PassText("a", (("b", ('x:y, "z"', "w")),))]),
        ("a{b=layer.*.[0-9]}", [PassText("a", (("b", ("layer.*.[0-9]",)),))]),
    ],
)
def test_the_grammar(text: str, expected: list[PassText]) -> None:
    assert parse_pass_list(text) == expected


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "expected the name of a pass, found the end"),
        ("  ", 3, "expected the name of a pass, found the end"),
        ("a,", 3, "expected the name of a pass, found the end"),
        ("a,,b", 3, "expected the name of a pass, found ','"),
        ("a b", 3, "expected ',' or the end, found 'b'"),
        ("a}", 2, "expected ',' or the end, found '}'"),
        ("a, b{c=1", 5, "this '{' is not closed"),
        ("a{", 2, "this '{' is not closed"),
        ("a{b}", 4, "expected '=' after option 'b', found '}'"),
        ("a{b", 4, "expected '=' after option 'b', found the end"),
        ("a{=1}", 3, "expected the name of an option of a, found '='"),
        ("a{b=1 c=2}", 7, "expected ',' or '}' in the options of a, found 'c'"),
        ("a{b=1,b=2}", 7, "option 'b' of a is given twice"),
        ("a{b=1:}", 7, "expected a value, found '}'"),
        ("a{b=:1}", 5, "expected a value, found ':'"),
        ('a{b="1}', 5, "this '\"' is not closed"),
        ('a{b="\\x"}', 5, '"\\x" is not a JSON string: write \\ as \\\\'),
        ('"a"', 1, "expected the name of a pass, found '\"a\"'"),
    ],
)
def test_errors_name_the_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(InvalidOption) as error:
        parse_pass_list(text)
    assert str(error.value) == f"pass list, column {column}: {problem}"


def test_options_take_the_type_that_the_pass_declares() -> None:
    (step,) = build_passes("quantize-dynamic{min_elements=7,max_error=0.5,ignored_scopes=a.*:b}")
    assert step.min_elements == 7 and step.max_error == 0.5  # type: ignore[attr-defined]
    assert step.ignored_scopes == ("a.*", "b")  # type: ignore[attr-defined]
    (step,) = build_passes("quantize-dynamic{ignored_scopes=a}")
    assert step.ignored_scopes == ("a",)  # type: ignore[attr-defined]
    (step,) = build_passes("smooth-activations{alphas=0.5:0.75}")
    assert step.alphas == (0.5, 0.75)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dead-code,dead-cod",
            "pass list, column 11: no pass 'dead-cod', did you mean 'dead-code'?; 'tersor passes' lists them",
        ),
        (
            "fold-constants{byte_budgets=1}",
            "pass fold-constants has no option 'byte_budgets', did you mean 'byte_budget'?; it has: byte_budget",
        ),
        ("dead-code{all=1}", "pass dead-code has no option 'all'; it has none"),
        (
            "fold-constants{byte_budget=1:2}",
            "pass fold-constants: option 'byte_budget' takes one value, not 2; put a value that contains ':' in double quotes",
        ),
        (
            "fold-constants{byte_budget=}",
            "pass fold-constants: option 'byte_budget' takes one value, not none; put a value that contains ':' in double quotes",
        ),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(text: str, message: str) -> None:
    with pytest.raises(InvalidOption) as error:
        build_passes(text)
    assert str(error.value) == message


def test_values_of_the_wrong_type_name_the_option() -> None:
    with pytest.raises(InvalidOption, match=r"^pass fold-constants: byte_budget: .*valid integer"):
        build_passes("fold-constants{byte_budget=much}")
