"""Seeded training of small models, once a machine: weights are kept as safetensors in the user's cache.

No weights are in the repository, and a metric needs a model that has learned something. A workload's
``build`` trains for some seconds the first time and reads what it learned afterwards, so that it gives
the same numbers every time on a machine. The file's name holds a hash of all that determines the
weights: change a workload's source, and it is trained anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch

Progress = Callable[[int, int, str], None]
# Sums over differing numbers of threads differ in their last bits, and training amplifies them. One
# thread also keeps its pace where several processes share few cores, as tests do.
THREADS = 1
# What data and architectures come from, beside Python itself (its documentation and its sources).
LIBRARIES = ("torch", "transformers", "tokenizers", "scikit-learn", "vaderSentiment")
_WARMUP = 0.1  # The share of steps in which the learning rate rises.

_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)
# Weights that this process trained: where the cache cannot be written, once a process is enough.
_here: dict[str, dict[str, torch.Tensor]] = {}


@contextlib.contextmanager
def telling(progress: Progress) -> Iterator[None]:
    """Within it, training calls ``progress`` with (done, total, what)."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def seeded(make: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    """What ``make`` makes from torch's random numbers at ``seed``, in evaluation mode. The caller's
    random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    module.eval()
    return module


def trained(
    package: str, module: torch.nn.Module, train: Callable[[torch.nn.Module], None], seed: int = 0
) -> torch.nn.Module:
    """``module`` with the weights that ``train`` gives it: from the cache, else trained now and kept.

    Args:
        package: of the workload (``__package__``), whose source determines the weights.
        module: as it is before training, itself seeded; it is changed and returned in evaluation mode.
        train: changes the module's weights in place, drawing random numbers from torch alone.
        seed: of torch's random numbers while ``train`` runs.
    """
    path = cache() / f"{package.rpartition('.')[2]}-{_fingerprint(package, seed)}.safetensors"
    if path.name in _here:
        module.load_state_dict(_here[path.name])
    elif not _load(module, path):
        with _alone(path):
            if not _load(module, path):
                _train(module, train, seed)
                _keep(module, path)
                _here[path.name] = {k: v.clone() for k, v in module.state_dict().items()}
    module.eval()
    return module


def fit(
    module: torch.nn.Module,
    loss: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    what: str,
) -> None:
    """AdamW with a warm-up and a cosine decay to zero.

    Args:
        module: is in training mode while it runs.
        loss: of step i, 0 <= i < ``steps``: a scalar to go down.
        what: is trained, for the progress line.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _schedule(i, steps))
    tell = _progress.get() or (lambda done, total, what: None)
    module.train()
    for i in range(steps):
        tell(i, steps, f"training {what}")
        optimizer.zero_grad(set_to_none=True)
        value = loss(i)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    tell(steps, steps, f"training {what}")
    module.eval()


def shuffled(count: int, size: int, seed: int = 0) -> Callable[[int], Sequence[int]]:
    """Which examples step i takes: ``size`` of ``count``, in a new seeded order each epoch."""
    per_epoch = max(count // size, 1)

    def rows(i: int) -> Sequence[int]:
        epoch, place = divmod(i, per_epoch)
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order[place * size : (place + 1) * size]

    return rows


def cache() -> Path:
    """Where trained weights are kept: ``$XDG_CACHE_HOME/tersor/models``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "tersor" / "models"


def _schedule(step: int, steps: int) -> float:
    warm = max(int(steps * _WARMUP), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _train(module: torch.nn.Module, train: Callable[[torch.nn.Module], None], seed: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            train(module)
    finally:
        torch.set_num_threads(threads)


def _fingerprint(package: str, seed: int) -> str:
    """Of the package's source, this module's, the libraries' versions and the seed."""
    digest = hashlib.sha256()
    folder = Path(str(importlib.import_module(package).__file__)).parent
    for file in (*sorted(folder.glob("*.py")), Path(__file__)):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\0".encode())
    digest.update(f"python {platform.python_version()} {platform.machine()} seed {seed}".encode())
    return digest.hexdigest()[:16]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _load(module: torch.nn.Module, path: Path) -> bool:
    """Whether ``path`` held weights for the module, which has them now; else it is as it was."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    try:
        safetensors.torch.load_model(module, path)
    except (OSError, RuntimeError, safetensors.SafetensorError):
        module.load_state_dict(before)
        return False  # Absent, torn, or another model's: it is trained anew.
    return True


def _keep(module: torch.nn.Module, path: Path) -> None:
    """Writes the weights whole or not at all. A cache that cannot be written is none."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as staged:
            pass
        try:
            safetensors.torch.save_model(module, staged.name)
            os.replace(staged.name, path)
        finally:
            Path(staged.name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Processes that want the same weights at once wait for the first of them."""
    lock: Any = contextlib.nullcontext()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        lock = contextlib.nullcontext()
    try:
        yield
    finally:
        if isinstance(lock, filelock.BaseFileLock):
            lock.release()
