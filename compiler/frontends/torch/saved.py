"""Modules and exported programs in files of torch's own.

Such files hold pickles, and reading a pickle can run any code: only what the user trusts gets here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tersor.errors import InvalidModel


def load_saved(path: Path) -> Any:
    """The ExportedProgram of a ``.pt2``, or the module of a ``.pt`` or ``.pth``, in evaluation mode.

    Raises:
        InvalidModel: torch cannot read it, or it holds weights without a module.
    """
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path)
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # zipfile, pickle, and whatever the file's own code raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidModel(f"{path}: torch cannot load it: {reason}") from None
    if not isinstance(loaded, torch.nn.Module):
        raise InvalidModel(
            f"{path}: holds a {type(loaded).__name__}, not a module: load it into its module and give "
            "that, or a model folder with safetensors"
        )
    return loaded.eval()
