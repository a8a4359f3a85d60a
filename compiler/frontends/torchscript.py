"""Detects TorchScript files, which look like other files of torch but contain no Python code to trace."""

from __future__ import annotations

import zipfile
from pathlib import Path

# Continues a message such as "model.pt is ".
WHY_NOT = (
    "TorchScript, a compiled program that torch.export cannot trace: give the original module, or an ONNX "
    "export of it"
)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, whatever its name."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/__torch__" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
