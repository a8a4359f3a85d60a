"""torch in float32: compiled by inductor, weights frozen, sizes open; or eager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tersor.errors import InvalidModel, one_line
from tersor.models.minilm import build
from tersor.target import usable_cores

CHOICES: tuple[dict[str, str], ...] = ({"mode": "inductor"}, {"mode": "eager"})


def open_session(path: Path, choice: Mapping[str, object]) -> Session:
    """The module; ``path`` is its folder of weights.

    Raises:
        InvalidModel: inductor does not compile it here (it needs a C++ compiler).
    """
    assert path == build.directory().resolve()
    torch.set_num_threads(len(usable_cores()))
    module = build.build()
    if choice["mode"] == "eager":
        return Session(module)
    torch._inductor.config.freezing = True  # type: ignore[attr-defined]
    session = Session(torch.compile(module, dynamic=True))
    try:
        session.run({name: array.numpy() for name, array in build.example_inputs().items()})
    except Exception as error:
        raise InvalidModel(f"inductor: {one_line(error, 300)}") from None
    return session


@dataclass(frozen=True)
class Session:
    """The module, fed and read by name."""

    module: Any

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        with torch.inference_mode():
            given = {name: torch.from_numpy(inputs[name]) for name in build.INPUTS}
            return {build.OUTPUT: self.module(**given).numpy()}
