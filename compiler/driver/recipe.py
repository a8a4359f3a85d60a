"""Recipes: which passes run, with which options. One model for Python, TOML and ``--set``.

description = "int8 weights"

[[passes]]
name = "quantize-linear"
max_error = 0.05
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tersor.errors import InvalidOption, suggest
from tersor.pipeline import Pass, registry

FLOOR = 0.95


class Step(BaseModel):
    """One pass by name; every other key is an option of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    def build(self) -> Pass:
        """The pass with its options.

        Raises:
            InvalidOption: no such pass, no such option (with a suggestion), or a wrong value.
        """
        return build_pass(self.name, self.model_extra or {})


class Recipe(BaseModel):
    """A named list of passes that runs after canonicalization and fusion.

    Attributes:
        floor: the least share of every output to keep on calibration inputs (``OutputFidelity.kept``): 0.95
            allows one label in 20 to differ, and relative errors of 0.32; 0 allows anything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = "custom"
    description: str = ""
    passes: tuple[Step, ...] = ()
    floor: Annotated[float, Field(ge=0, le=1)] = FLOOR

    @staticmethod
    def of(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """A shipped recipe by name, a ``.toml`` file, plain data, or a recipe itself.

        Raises:
            InvalidOption: no such recipe or file, unknown keys, wrong values.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return _validated(dict(source), "recipe")
        path = Path(source)
        if path.suffix == ".toml":
            return _from_file(path)
        shipped = registry.shipped_recipes()
        if str(source) not in shipped:
            known = ", ".join(shipped)
            raise InvalidOption(
                f"no recipe {str(source)!r}{suggest(str(source), shipped)}; there are {known}, "
                "or give a .toml file"
            )
        return _validated({"name": str(source), **shipped[str(source)]}, f"recipe {source}")

    def override(self, settings: Mapping[str, Any]) -> Recipe:
        """A copy with options changed: ``{"quantize-linear.max_error": 0.1}``. Without the pass name, every
        pass that has the option takes it. ``floor`` is an option of the recipe itself.

        Raises:
            InvalidOption: the recipe has no such pass or option.
        """
        own = {"floor": settings["floor"]} if "floor" in settings else {}
        settings = {key: value for key, value in settings.items() if key not in own}
        steps = [step.model_dump() for step in self.passes]
        given = {key.rpartition(".")[2] for key in settings}
        for key, value in settings.items():
            option = key.rpartition(".")[2]
            for step in self._having(key):
                rivals = registry.find_pass(steps[step]["name"]).one_of
                for rival in rivals - given if option in rivals else ():
                    steps[step].pop(rival, None)  # The recipe's own setting gives way.
                steps[step][option] = value
        return _validated({**self.model_dump(), "passes": steps, **own}, f"recipe {self.name}")

    @property
    def explicit_budgets(self) -> list[bool]:
        """For each pass, whether its budget was set by the user rather than by a shipped recipe."""
        shipped = registry.shipped_recipes().get(self.name, {}).get("passes", [])
        explicit = []
        for i, step in enumerate(self.passes):
            usual = shipped[i] if len(shipped) == len(self.passes) else {}
            options = registry.find_pass(step.name).budget
            explicit.append(any(step.model_dump().get(o) != usual.get(o) for o in options))
        return explicit

    def _having(self, key: str) -> list[int]:
        """Indices of the passes that have an option."""
        name, _, option = key.rpartition(".")
        owners = [
            i
            for i, step in enumerate(self.passes)
            if (not name or step.name == name) and option in option_names(step.name)
        ]
        if owners:
            return owners
        known = [f"{s.name}.{o}" for s in self.passes for o in option_names(s.name)]
        there = f"; there are {', '.join(known)}" if known else "; it has no options"
        raise InvalidOption(f"recipe {self.name} has no option {key!r}{suggest(key, known)}{there}")

    def build(self) -> list[Pass]:
        """The passes, in order."""
        return [step.build() for step in self.passes]


def option_names(pass_name: str) -> list[str]:
    """Options of a pass, in the order it declares them."""
    return [f.name for f in dataclasses.fields(registry.find_pass(pass_name))]


def build_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass by name with validated options; text is converted (``"7"`` for an int,
    ``"a:b"`` for a list).

    Raises:
        InvalidOption: no such pass or option, or a value of the wrong type.
    """
    kind = registry.find_pass(name)
    known = option_names(name)
    for key in options:
        if key not in known:
            there = f"it has: {', '.join(known)}" if known else "it has none"
            raise InvalidOption(f"pass {name} has no option {key!r}{suggest(key, known)}; {there}")
    try:
        return TypeAdapter(kind).validate_python(_lists(kind, options))
    except ValidationError as error:
        raise InvalidOption(f"pass {name}: {_first_problem(error)}") from None


def _lists(kind: type[Pass], options: Mapping[str, Any]) -> dict[str, Any]:
    """Splits text for list options, ``a:b``; empty text is the empty list."""
    hints = get_type_hints(kind)
    return {
        name: tuple(v for v in value.split(":") if v)
        if isinstance(value, str) and get_origin(hints[name]) is tuple
        else value
        for name, value in options.items()
    }


def _from_file(path: Path) -> Recipe:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidOption(f"recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidOption(f"recipe {path}: not TOML: {error}") from None
    return _validated({"name": path.stem, **data}, f"recipe {path}")


def _validated(data: dict[str, Any], where: str) -> Recipe:
    for key in data:
        if key not in Recipe.model_fields:
            known = list(Recipe.model_fields)
            raise InvalidOption(f"{where}: unknown key {key!r}{suggest(key, known)}")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InvalidOption(f"{where}: {_first_problem(error)}") from None
    recipe.build()
    return recipe


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(p) for p in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
