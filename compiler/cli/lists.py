"""``tersor passes``, ``tersor recipes``, ``tersor targets``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from tersor.cli.console import say
from tersor.cli.guard import Debug

if TYPE_CHECKING:
    from tersor.pipeline import Pass


def passes(debug: Debug = False) -> None:
    """List the passes, with their options and defaults."""
    from tersor.pipeline import registry

    for name, kind in registry.passes().items():
        say(name)
        say(f"    {first_line(kind)}")
        for option, default in options(kind).items():
            say(f"    {option}={default}")


def recipes(debug: Debug = False) -> None:
    """List the recipes, with the options for --set."""
    from tersor.driver.recipe import Recipe
    from tersor.pipeline import registry

    for name in registry.shipped_recipes():
        recipe = Recipe.of(name)
        say(name)
        say(f"    {recipe.description}")
        for step in recipe.build():
            say(f"    {step.pass_name()}")
            for field in dataclasses.fields(step):
                value = _text(getattr(step, field.name))
                say(f"        --set {step.pass_name()}.{field.name}={value}")


def targets(debug: Debug = False) -> None:
    """List the values of --target."""
    from tersor.target import ISA_LEVELS, Target

    host = Target.host()
    say("cpu")
    say(f"    this machine: {_machine(host)}")
    for name, features in ISA_LEVELS.items():
        here = "supported by this machine" if features <= host.features else "not this machine"
        say(f"cpu:{name}")
        say(f"    {' '.join(sorted(features))} ({here})")
    say("cuda:sm_NN")
    say("    a GPU of that compute capability, as in cuda:sm_90 (runtime tvm)")


def first_line(kind: type[Pass]) -> str:
    """The first paragraph of a pass's own docstring, or else of its module's."""
    own = inspect.cleandoc(kind.__doc__ or "")
    # Docstrings that dataclasses generate, and lists of options, do not describe the pass.
    if not own or own.startswith((f"{kind.__name__}(", "Options:", "No options")):
        module = inspect.getmodule(kind)
        own = inspect.cleandoc((module.__doc__ if module else None) or "")
    return " ".join(own.split("\n\n")[0].split())


def options(kind: type[Pass]) -> dict[str, str]:
    """Default values of the options, in the syntax of ``-p``."""
    return {f.name: _text(_default(f)) for f in dataclasses.fields(kind)}


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)" if field.default is dataclasses.MISSING else field.default


def _text(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _machine(host: Any) -> str:
    features = " ".join(sorted(host.features)) or "no known features"
    return f"{host.cpu or 'unknown processor'}, {host.cores} cores, {features}"
