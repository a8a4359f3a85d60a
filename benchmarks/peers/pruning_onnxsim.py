"""onnxsim: the channels between two MatMuls by ``apply_structured_wanda_pruning`` (norms of weights times
norms of activations), then ``apply_pruning_finetune``, which fits the weights that are left to the
original's activations: a ridge regression, no training. Without it, and without the activations, the
mean cosine at 75% was 0.83 and 0.72.

Its ``apply_attention_head_pruning`` finds no attention in MiniLM as torch's exporters write it (tried:
dynamo and TorchScript, sdpa and eager, plain, after ``onnxsim.simplify`` and after ONNX Runtime's
optimizer), so all that goes are FFN neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
from onnx import numpy_helper
from onnxsim import finetune
from peers import pruning_share

PACKAGES = ("onnxsim",)
NOTE = (
    "FFN neurons only: its pruning of heads matches no attention block here; the ridge regression is "
    "apply_pruning_finetune's, by the numpy form that the package keeps of it"
)
# The regularization that is its default is 0.01.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"global": False, "ridge": 1e-2},
    {"global": False, "ridge": 1e-4},
    {"global": True, "ridge": 1e-2},
    {"global": True, "ridge": 1e-4},
)
Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Data:
    """Batches without padding, and what the original makes of them."""

    model: onnx.ModelProto
    feeds: Sequence[Feed]
    _ratios: dict[tuple[float, bool], float] = field(default_factory=dict)

    def ratio(self, share: float, together: bool) -> float:
        """The ratio that leaves ``share`` of the multiply-adds. By norms of weights, which take no time:
        how many channels go does not depend on which."""
        whole = pruning_share.macs(self.model)

        def share_at(ratio: float) -> float:
            pruned = onnxsim.apply_structured_pruning(
                self.model, sparsity=ratio, global_sparsity=together
            )
            return pruning_share.macs(pruned) / whole

        if (share, together) not in self._ratios:
            self._ratios[share, together] = pruning_share.ratio_for(share, share_at)
        return self._ratios[share, together]

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """What the linears after a GELU read, f32[tokens, neurons], by name."""
        names = [node.output[0] for node in self.model.graph.node if node.op_type == "Gelu"]
        probed = onnx.ModelProto()
        probed.CopyFrom(self.model)
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = onnxruntime.InferenceSession(probed.SerializeToString())
        runs = [session.run(names, dict(feed)) for feed in self.feeds]
        return {
            name: np.concatenate([run[i].reshape(-1, run[i].shape[-1]) for run in runs])
            for i, name in enumerate(names)
        }


def opened(path: Any) -> onnx.ModelProto:
    """The model to prune. Without the shapes that the exporter wrote down: onnxsim leaves them as they
    were, which makes its file invalid."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    return model


def scores(model: onnx.ModelProto, feeds: Sequence[Feed], candidate: Mapping[str, Any]) -> Data:
    """All that any candidate needs of the data."""
    return Data(model, feeds)


def prune(
    model: onnx.ModelProto, data: Data, share: float, candidate: Mapping[str, Any]
) -> onnx.ModelProto:
    """``model`` with ``share`` of its multiply-adds."""
    pruned = onnxsim.apply_structured_wanda_pruning(
        model,
        data.feeds,
        sparsity=data.ratio(share, candidate["global"]),
        global_sparsity=candidate["global"],
    )
    return fitted(data, pruned, candidate["ridge"])


def fitted(data: Data, pruned: onnx.ModelProto, ridge: float) -> onnx.ModelProto:
    """``apply_pruning_finetune`` of ``pruned``, whose loops of scalars take 20 minutes for this: its
    numpy form, for the layers that have lost inputs; the fit of any other is its own weight, exactly."""
    made = onnx.ModelProto()
    made.CopyFrom(pruned)
    whole = {tensor.name: tensor for tensor in data.model.graph.initializer}
    left = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "MatMul" and node.input[0] in data.rows:
            held = left[node.input[1]]
            weight = numpy_helper.to_array(held).astype(np.float64)
            before = numpy_helper.to_array(whole[held.name]).astype(np.float64)
            keep = finetune._find_keep_indices(before, weight)
            x = data.rows[node.input[0]].astype(np.float64)
            new, _ = finetune._ridge_fit(x[:, keep], x @ before, weight.T, None, ridge)
            held.CopyFrom(numpy_helper.from_array(new.T.astype(np.float32), held.name))
    return made
