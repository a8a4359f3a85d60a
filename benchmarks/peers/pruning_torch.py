"""Torch-Pruning (DepGraph): ``MetaPruner`` on FFN neurons and heads; the 384 dims of the residual stream
are the embedding, and stay.

Its importances with gradients need a loss whose gradient is not zero at the unpruned model, which the
distance to the unpruned model's own embeddings has not:

- Taylor, |w dL/dw|: L is the contrastive loss that sentence embedders are trained with, two passes with
  dropout being the two views of a sentence (SimCSE, Gao et al., 2021, arXiv 2104.08821).
- Hessian, w² h: h is the diagonal of the Gauss-Newton matrix of |e(w) - e(w0)|², that is the mean square
  of d(r . e)/dw over random r, which is how the second moments of gradients are estimated without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch_pruning
from peers import pruning_bert, pruning_share
from peers.pruning_bert import Feed

PACKAGES = ("torch-pruning",)
NOTE = "MetaPruner, one step"
# Neurons and heads are ranked among all layers, or the same share of each layer goes. The first is what
# the library's own example of BERT does.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"importance": "magnitude", "global": True, "heads": True},
    *(
        {"importance": score, "global": together, "heads": heads}
        for score in ("activation", "taylor", "hessian")
        for together in (True, False)
        for heads in (True, False)
    ),
)
TEMPERATURE = 0.05
ByName = dict[str, torch.Tensor]  # By parameter or by module.


def scores(module: torch.nn.Module, feeds: Sequence[Feed], candidate: Mapping[str, Any]) -> ByName:
    """What the importance of ``candidate`` knows of the data. ``feeds``: batches without padding."""
    find: dict[str, Callable[..., Any]] = {
        "activation": _activations,
        "taylor": _contrastive,
        "hessian": _gauss_newton,
    }
    name = candidate["importance"]
    return find[name](module, feeds) if name in find else {}


def prune(
    module: torch.nn.Module, scored: ByName, share: float, candidate: Mapping[str, Any]
) -> torch.nn.Module:
    """``module`` with ``share`` of its multiply-adds."""
    whole = pruning_bert.macs(module)
    at = partial(_pruned, module, scored, candidate)
    return at(pruning_share.ratio_for(share, lambda ratio: pruning_bert.macs(at(ratio)) / whole))


def _pruned(
    module: torch.nn.Module, scored: ByName, candidate: Mapping[str, Any], ratio: float
) -> torch.nn.Module:
    name = candidate["importance"]
    copied = pruning_bert.copied(module)
    for path, known in scored.items():
        if name == "activation":
            copied.get_submodule(path)._importance = known
        else:
            copied.get_parameter(path).grad = known
    fixed: list[torch.nn.Module] = [copied.encoder.embeddings, copied.encoder.pooler]
    heads = {}
    for layer in pruning_bert.layers(copied):
        inner = layer.attention.self
        heads |= dict.fromkeys((inner.query, inner.key, inner.value), inner.num_attention_heads)
        fixed += [layer.attention.output, layer.output]
    pruner = torch_pruning.pruner.MetaPruner(
        copied,
        pruning_bert.build.example_inputs(),
        importance=_importance(name),
        global_pruning=candidate["global"],
        pruning_ratio=ratio,
        num_heads=heads,
        prune_num_heads=candidate["heads"],
        prune_head_dims=False,
        head_pruning_ratio=ratio if candidate["heads"] else 0.0,
        ignored_layers=fixed,
        output_transform=torch.sum,
    )
    pruner.step()
    for layer in pruning_bert.layers(copied):
        inner = layer.attention.self
        inner.num_attention_heads = pruner.num_heads[inner.query]
        inner.all_head_size = inner.query.out_features
    return copied


def _importance(name: str) -> Any:
    importance = torch_pruning.importance
    return {
        "magnitude": importance.GroupMagnitudeImportance,
        "activation": importance.ActivationImportance,
        "taylor": importance.GroupTaylorImportance,
        # It takes the mean square of gradients for a parameter's own where it has collected none.
        "hessian": importance.GroupHessianImportance,
    }[name]()


def _activations(module: torch.nn.Module, feeds: Sequence[Feed]) -> ByName:
    """Sums of the absolute inputs of each linear over all feeds; the library's hook keeps the last's."""
    importance = torch_pruning.importance.ActivationImportance()
    linears = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    sums: ByName = {}
    with importance.compute_importance(module), torch.inference_mode():
        for feed in feeds:
            pruning_bert.run(module, feed)
            for name, linear in linears.items():
                if hasattr(linear, "_importance"):
                    sums[name] = sums.get(name, torch.zeros(())) + linear._importance
    for linear in linears.values():
        linear.__dict__.pop("_importance", None)
    return sums


def _contrastive(module: torch.nn.Module, feeds: Sequence[Feed]) -> ByName:
    torch.manual_seed(0)
    learner = pruning_bert.copied(module).train()
    for feed in feeds:
        # A sentence has to be told from the others of its batch.
        if len(feed["input_ids"]) > 1:
            one, two = pruning_bert.run(learner, feed), pruning_bert.run(learner, feed)
            loss = torch.nn.functional.cross_entropy(
                one @ two.T / TEMPERATURE, torch.arange(len(one)), reduction="sum"
            )
            loss.backward()
    return _gradients(learner)


def _gauss_newton(module: torch.nn.Module, feeds: Sequence[Feed]) -> ByName:
    """A batch's gradient is a sum over its sentences, each with an r of its own of mean zero: the mean of
    its square is the sum of the squares."""
    generator = torch.Generator().manual_seed(0)
    learner = pruning_bert.copied(module)
    squares: ByName = {}
    for feed in feeds:
        learner.zero_grad()
        embeddings = pruning_bert.run(learner, feed)
        r = torch.randn(embeddings.shape, generator=generator)
        (embeddings * r).sum().backward()
        for name, gradient in _gradients(learner).items():
            squares[name] = squares.get(name, torch.zeros(())) + gradient.square()
    return squares


def _gradients(learner: torch.nn.Module) -> ByName:
    return {n: p.grad.detach() for n, p in learner.named_parameters() if p.grad is not None}
