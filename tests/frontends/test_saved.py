"""torch's own file formats: read only if trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tersor.errors import InvalidModel
from tersor.frontends import load_model
from tersor.ops.evaluate import evaluate

X = torch.arange(6.0).reshape(2, 3)


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()


def exported(path: Path) -> Path:
    torch.export.save(torch.export.export(module(), (X,)), path)
    return path


def pickled(path: Path) -> Path:
    torch.save(module(), path)
    return path


class Opens:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(("make", "name"), [(exported, "m.pt2"), (pickled, "m.pt"), (pickled, "m.pth")])  # fmt: skip
def test_a_trusted_file_is_imported(make: object, name: str, tmp_path: Path) -> None:
    path = make(tmp_path / name)  # type: ignore[operator]
    graph = load_model(path, example_inputs=[X], output_names=["y"], trust=True).graph
    got = evaluate(graph, {graph.inputs[0].name: X.numpy()})["y"]
    np.testing.assert_allclose(got, module()(X).detach().numpy(), rtol=1e-6)  # One f32 product.


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "m.onnx"])
def test_an_untrusted_pickle_does_not_run(name: str, tmp_path: Path) -> None:
    torch.save(Opens(tmp_path / "ran"), tmp_path / name)
    with pytest.raises(InvalidModel, match="not read unless trusted"):
        load_model(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_weights_alone_are_not_a_module(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(module().state_dict(), path)
    with pytest.raises(InvalidModel) as error:
        load_model(path, trust=True)
    assert str(error.value) == (
        f"{path}: contains a OrderedDict, not a module: load it into a module and give that, or a "
        "model folder with safetensors"
    )


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InvalidModel, match="torch cannot load it: ") as error:
        load_model(path, trust=True)
    assert "\n" not in str(error.value)
