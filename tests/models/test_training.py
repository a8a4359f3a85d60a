"""Training of workloads: the same weights every time, kept whole in the cache or made anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.models import training

PACKAGE = "tersor.models.minilm"


def toy() -> torch.nn.Module:
    layers = (torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    return torch.nn.Sequential(*layers)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(training, "_here", {})  # As in a process that has trained nothing.
    return tmp_path / "tersor" / "models"


class Learner:
    """Trains the toy, or reads it from the cache, as a new process would; counts the trainings."""

    times = 0

    def __call__(self, seed: int = 0) -> dict[str, torch.Tensor]:
        training._here.clear()
        module = training.trained(PACKAGE, training.seeded(toy, seed), self._train, seed)
        assert not module.training
        return dict(module.state_dict())

    def _train(self, module: torch.nn.Module) -> None:
        self.times += 1
        x = torch.randn(64, 4)
        y = x.sum(1, keepdim=True)
        rows = training.shuffled(64, 16)

        def loss(i: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(module(x[rows(i)]), y[rows(i)])

        training.fit(module, loss, steps=60, learning_rate=3e-2, what="toy")


@pytest.fixture
def learn(cache: Path) -> Learner:
    return Learner()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_weights_are_trained_once_and_read_afterwards(learn: Learner, cache: Path) -> None:
    first = learn()
    assert same(learn(), first)
    assert learn.times == 1
    assert not same(first, dict(training.seeded(toy).state_dict()))


def test_training_again_gives_the_same_weights(learn: Learner, cache: Path) -> None:
    first = learn()
    for file in cache.glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(99)  # What the caller did with random numbers is no matter.
    assert same(learn(), first)
    assert learn.times == 2


def test_a_seed_has_weights_of_its_own(learn: Learner) -> None:
    assert not same(learn(0), learn(1))
    assert learn.times == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another model's"])
def test_a_damaged_cache_is_trained_anew(learn: Learner, cache: Path, damage: str) -> None:
    first = learn()
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    if damage == "another model's":
        from safetensors.torch import save_file

        save_file({k: torch.zeros_like(v) for k, v in first.items() if "bias" in k}, file)
    else:
        file.write_bytes({"empty": b"", "cut": whole[:-9], "noise": b"\xff" * len(whole)}[damage])
    assert same(learn(), first)
    assert file.read_bytes() == whole
    assert learn.times == 2


def test_a_cache_that_cannot_be_written_is_none(
    learn: Learner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = learn()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(learn(), first)
    assert learn.times == 2
    assert (tmp_path / "file").read_text() == "no folder"


def test_nothing_but_the_weights_and_the_lock_is_left(learn: Learner, cache: Path) -> None:
    learn()
    assert {file.suffix for file in cache.iterdir()} <= {".safetensors", ".lock"}


def test_the_callers_random_numbers_go_on(learn: Learner) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learn()
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_told(learn: Learner) -> None:
    told: list[tuple[int, int, str]] = []
    with training.telling(lambda *event: told.append(event)):
        learn()
    assert told[0] == (0, 60, "training toy")
    assert told[-1] == (60, 60, "training toy")


def test_an_epoch_takes_each_example_once() -> None:
    rows = training.shuffled(64, 16)
    first, second = ([r for i in range(4) for r in rows(e * 4 + i)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
