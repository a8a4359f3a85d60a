"""TextPruner's criterion (Yang et al., 2022, arXiv 2203.15996), self-supervised and iterative, in its
own package's formulas; the package (1.1.post2, 2023) calls ``prune_heads``, which transformers 5 lacks.

The loss is the cross-entropy of the softmax of the model's output against that of the unpruned model in
half precision (without which it would have no gradient before the first cut). Importances are sums over
batches, g being a weight's gradient (of the sum over a batch, not its mean: ours differ in size):

- a head: |sum of g w over its columns of the attention's output projection|;
- a neuron: |sum of g w over its column of the FFN's output|, and, where each layer keeps the same number,
  that of its row and bias of the FFN's input on top.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peers import pruning_bert, pruning_share
from peers.pruning_bert import Feed

PACKAGES = ()
NOTE = "its criterion, reimplemented: the package (1.1.post2) does not run with transformers 5"
ITERATIONS = 4
CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {"even": even, "heads": heads} for even in (False, True) for heads in (False, True)
)
Importances = tuple[torch.Tensor, torch.Tensor]  # [layers, heads], [layers, neurons]


def scores(
    module: torch.nn.Module, feeds: Sequence[Feed], candidate: Mapping[str, Any]
) -> tuple[Sequence[Feed], list[torch.Tensor]]:
    """The batches, without padding, and the soft labels of each."""
    teacher = copy.deepcopy(module).half()
    with torch.inference_mode():
        labels = [pruning_bert.run(teacher, feed).softmax(-1) for feed in feeds]
    return feeds, [label.clone() for label in labels]


def prune(
    module: torch.nn.Module, scored: Any, share: float, candidate: Mapping[str, Any]
) -> torch.nn.Module:
    """``module`` with ``share`` of its multiply-adds."""
    whole = pruning_bert.macs(module)
    count = len(pruning_bert.layers(module))
    first = pruning_bert.layers(module)[0]
    sizes = first.attention.self.num_attention_heads, first.intermediate.dense.out_features

    def kept(ratio: float) -> tuple[int, int]:
        """Heads and neurons of an average layer, times layers."""
        heads = round(count * sizes[0] * (1 - ratio)) if candidate["heads"] else count * sizes[0]
        neurons = round(count * sizes[1] * (1 - ratio))
        if candidate["even"]:
            return heads // count * count, neurons // count * count
        return heads, neurons

    def share_at(ratio: float) -> float:
        tokens = pruning_share.SIZES["batch"] * pruning_share.SIZES["sequence"]
        heads, neurons = kept(ratio)
        width = first.output.dense.out_features
        size = width // sizes[0]
        head = 4 * width * size + 2 * pruning_share.SIZES["sequence"] * size
        return tokens * (heads * head + neurons * 2 * width) / whole

    target = kept(pruning_share.ratio_for(share, share_at))
    return _cut(module, *_masks(module, scored, target, candidate))


def _masks(
    module: torch.nn.Module, scored: Any, target: tuple[int, int], candidate: Mapping[str, Any]
) -> Importances:
    """Ones where a head or neuron stays, after cuts of equal size, each ranked anew."""
    masked = pruning_bert.copied(module).requires_grad_(False)
    for step in range(1, ITERATIONS + 1):
        found = _importances(masked, scored, candidate["even"])
        masks = [
            _mask(scores, _goal(scores.numel(), goal, step), candidate["even"])
            for scores, goal in zip(found, target, strict=True)
        ]
        _zero(masked, *masks)
    return masks[0], masks[1]


def _goal(whole: int, target: int, step: int) -> int:
    """How many are left after ``step``."""
    return round(whole + (target - whole) * step / ITERATIONS)


def _importances(module: torch.nn.Module, scored: Any, even: bool) -> Importances:
    layers = pruning_bert.layers(module)
    outs = [layer.attention.output.dense.weight.requires_grad_() for layer in layers]
    ins = [layer.intermediate.dense for layer in layers]
    downs = [layer.output.dense.weight.requires_grad_() for layer in layers]
    heads = layers[0].attention.self.num_attention_heads
    head_sums = torch.zeros(len(layers), heads)
    neuron_sums = torch.zeros(len(layers), downs[0].shape[1])
    for linear in ins:
        linear.requires_grad_(even)
    for feed, label in zip(*scored, strict=True):
        module.zero_grad()
        loss = -(pruning_bert.run(module, feed).log_softmax(-1) * label).sum()
        loss.backward()
        for i, (out, linear, down) in enumerate(zip(outs, ins, downs, strict=True)):
            columns = _product(out).view(len(out), heads, -1)
            head_sums[i] += columns.sum(dim=(0, 2)).abs()
            neuron_sums[i] += _product(down).sum(dim=0).abs()
            if even:
                neuron_sums[i] += (_product(linear.weight).sum(dim=1) + _product(linear.bias)).abs()
    return head_sums, neuron_sums


def _product(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None
    return (weight.grad * weight).detach()


def _mask(importance: torch.Tensor, keep: int, even: bool) -> torch.Tensor:
    """Ones for the ``keep`` largest of all, or as many of each row; at least one of each row."""
    mask = torch.zeros_like(importance)
    if even:
        best = importance.topk(keep // len(importance), dim=1).indices
        return mask.scatter_(1, best, 1.0)
    mask.view(-1)[importance.reshape(-1).topk(keep).indices] = 1.0
    return mask.scatter_(1, importance.argmax(dim=1, keepdim=True), 1.0)


@torch.no_grad()
def _zero(module: torch.nn.Module, heads: torch.Tensor, neurons: torch.Tensor) -> None:
    """Zeros in the columns that read what goes, and in the neurons' own weights and biases."""
    for layer, head, neuron in zip(pruning_bert.layers(module), heads, neurons, strict=True):
        layer.attention.output.dense.weight *= head.repeat_interleave(
            layer.attention.self.attention_head_size
        )
        layer.output.dense.weight *= neuron
        layer.intermediate.dense.weight *= neuron[:, None]
        layer.intermediate.dense.bias *= neuron


@torch.no_grad()
def _cut(module: torch.nn.Module, heads: torch.Tensor, neurons: torch.Tensor) -> torch.nn.Module:
    """A copy of ``module`` with the heads and neurons that stay."""
    copied = pruning_bert.copied(module)
    for layer, head, neuron in zip(pruning_bert.layers(copied), heads, neurons, strict=True):
        inner = layer.attention.self
        dims = head.repeat_interleave(inner.attention_head_size).bool()
        for linear in (inner.query, inner.key, inner.value):
            _keep(linear, rows=dims)
        _keep(layer.attention.output.dense, columns=dims)
        inner.num_attention_heads = int(head.sum())
        inner.all_head_size = int(dims.sum())
        _keep(layer.intermediate.dense, rows=neuron.bool())
        _keep(layer.output.dense, columns=neuron.bool())
    return copied


def _keep(
    linear: Any, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    if rows is not None:
        linear.weight = torch.nn.Parameter(linear.weight[rows])
        linear.bias = torch.nn.Parameter(linear.bias[rows])
    if columns is not None:
        linear.weight = torch.nn.Parameter(linear.weight[:, columns])
    linear.out_features, linear.in_features = linear.weight.shape
