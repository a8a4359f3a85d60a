"""Modules and exported programs in torch's file formats.

These contain pickles, and reading a pickle can run any code: only load files that the user trusts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tersor.errors import InvalidModel, first_line


def load_saved(path: Path) -> Any:
    """The ExportedProgram of a ``.pt2``, or the module of a ``.pt`` or ``.pth``, in evaluation mode.

    Raises:
        InvalidModel: torch cannot read it, or it contains something else, such as weights without a module.
    """
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path)
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # From zipfile, pickle, or code in the file.
        raise InvalidModel(f"{path}: torch cannot load it: {first_line(error)}") from None
    if not isinstance(loaded, torch.nn.Module):
        raise InvalidModel(
            f"{path}: contains a {type(loaded).__name__}, not a module: load it into a module and give that, "
            "or a model folder with safetensors"
        )
    return loaded.eval()
