"""TorchScript: files and modules that look like torch's others, and hold no Python code to trace."""

from __future__ import annotations

import zipfile
from pathlib import Path

# What to say of it, after what it is.
WHY_NOT = (
    "TorchScript, a compiled program that torch.export does not trace: give the module that it was made "
    "of, or an ONNX export of it"
)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, whatever its name."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/__torch__" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
