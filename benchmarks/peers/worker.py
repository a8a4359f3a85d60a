"""A peer under measurement, in a process of its own; the protocol is that of ``tersor.tuning.worker``.

``NAME FOLDER``: NAME is a module beside this one, with an ``open_session`` as a backend
has it.
"""

from __future__ import annotations

import importlib
import sys

from tersor.tuning import worker

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    sys.exit(worker.serve(importlib.import_module(name).open_session, folder))
