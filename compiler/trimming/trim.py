"""Trimming a model and its tokenizer together to the vocabulary of a corpus.

Ids are renumbered in the old order. Tables keep the rows of the kept ids, tied heads the columns. Whatever
else the model does with ids (comparing them with the padding id) still sees the old ones, by a lookup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.analysis.match import has_trait
from tersor.analysis.vocabulary import (
    Head,
    Vocabulary,
    checked_ids,
    choose_vocabulary,
    find_heads,
    logits_flow,
    moves,
    walk_ids,
)
from tersor.errors import InvalidOption, Unsupported
from tersor.frontends import Imported, load_model
from tersor.ir import Graph, Node, Use, Value, verify
from tersor.pipeline import Pipeline, registry
from tersor.transforms.vocabulary import Cut, cut_heads, cut_last_axis, cut_tables, gather_rows
from tersor.trimming import model_files
from tersor.trimming.tokenizers import (
    first_pieces,
    known_ids,
    lowercased,
    open_tokenizer,
    trim_tokenizer,
    unknown_id,
)

Corpus = Iterable[str | Sequence[int]]


def trim_vocabulary(
    model: Any,
    corpus: Corpus,
    *,
    tokenizer: str | Path | None = None,
    input: str = "",
    untied: bool | None = None,
    **options: Any,
) -> Imported:
    """``model`` and its tokenizer with only the vocabulary that ``corpus`` uses, for :func:`tersor.compile`,
    which puts both into the artifact. Outputs on the corpus stay the same, also behind the prompts of a
    sentence-transformers folder.

        small = tersor.trim_vocabulary("all-MiniLM-L6-v2", sentences)
        tersor.compile(small, recipe="int8").save("out")          # out/tokenizer.json

    From here on inputs, calibration data included, must come from the new tokenizer.

    Args:
        model: as for :func:`compile`.
        corpus: texts, or the ids that the old tokenizer gives them.
        tokenizer: its ``tokenizer.json``; by default the one in the model's folder.
        input: the name of an input of the vocabulary to trim; by default the largest vocabulary.
        untied: whether untied projections onto as many columns as there are ids are logits of the ids. A
            model that has some is refused without it.
        options: those of :func:`compile` for torch modules.

    Raises:
        InvalidModel, Unsupported: as for :func:`compile`; an unknown kind of tokenizer.
        InvalidOption: no tokenizer, an empty corpus, ids out of range, no input that indexes a table.
    """
    imported = load_model(model, **options)
    name = model_files.tokenizer_name(imported.files) or model_files.TOKENIZER
    data = _tokenizer(imported, tokenizer, name)
    texts = _prompted(list(corpus), model_files.prompts(imported.files))
    graph = Pipeline(registry.optimization()).run(imported.graph)
    vocabulary = choose_vocabulary(graph, input)
    if vocabulary is None:
        raise InvalidOption("no input indexes an embedding table: there is no vocabulary to trim")
    old = _encode(data, texts)
    used = checked_ids(np.concatenate([np.zeros(0, np.int64), *old]), vocabulary.size)
    partial = _pieces_of_unknown_words(data, texts, old)
    named = model_files.named_ids(imported.files) & known_ids(data)
    small, order = trim_tokenizer(data, {*map(int, used), *partial, *named})
    kept = np.array([i for i in order if i < vocabulary.size], np.int64)
    if len(kept) < len(order):
        raise InvalidOption(
            f"the tokenizer has id {order[-1]}, but the model only {vocabulary.size} ids: they do not match"
        )
    _check(small, texts, old, kept)
    renumber(graph, vocabulary, kept, untied)
    verify(graph)
    files = model_files.renumbered(imported.files, order, vocabulary.size)
    return Imported(graph, files={**files, name: small}, remarks=imported.remarks)


def _prompted(texts: list[str | Sequence[int]], prompts: list[str]) -> list[str | Sequence[int]]:
    """``texts``, and each of them behind each prompt."""
    return [*texts, *(p + text for p in prompts for text in texts if isinstance(text, str))]


def _tokenizer(imported: Imported, given: str | Path | None, name: str) -> bytes:
    data = _tokenizer_file(imported, given, name)
    return lowercased(data) if model_files.lowers_texts(imported.files) else data


def _tokenizer_file(imported: Imported, given: str | Path | None, name: str) -> bytes:
    if given is not None:
        try:
            return Path(given).read_bytes()
        except OSError as error:
            raise InvalidOption(f"tokenizer {given}: {error.strerror}") from None
    if name not in imported.files:
        raise InvalidOption(
            f"the model has no {name}: give tokenizer=, or keep the ids as they are with the "
            "pass trim-vocabulary"
        )
    return imported.files[name]


def _encode(data: bytes, corpus: Sequence[str | Sequence[int]]) -> list[np.ndarray]:
    """i64[n] per text: its ids, without truncation and padding."""
    texts = [text for text in corpus if isinstance(text, str)]
    encoded = iter(open_tokenizer(data).encode_batch(texts) if texts else [])
    return [
        np.array(next(encoded).ids if isinstance(t, str) else t, np.int64).reshape(-1)
        for t in corpus
    ]


def _pieces_of_unknown_words(
    data: bytes, corpus: Sequence[str | Sequence[int]], old: list[np.ndarray]
) -> set[int]:
    """Ids of the pieces that the tokenizer matches in unknown words before it gives up."""
    unknown = unknown_id(data)
    texts = [t for t, ids in zip(corpus, old, strict=True) if isinstance(t, str) and unknown in ids]
    if not texts:
        return set()
    opened = open_tokenizer(data)
    if opened.normalizer is not None:
        texts = [opened.normalizer.normalize_str(text) for text in texts]
    if opened.pre_tokenizer is None:
        return first_pieces(data, texts)
    return first_pieces(
        data, [word for t in texts for word, _ in opened.pre_tokenizer.pre_tokenize_str(t)]
    )


def _check(
    small: bytes, corpus: Sequence[str | Sequence[int]], old: list[np.ndarray], kept: np.ndarray
) -> None:
    """Checks that the new tokenizer splits all texts as the old one did.

    Raises:
        Unsupported: it does not.
    """
    if not any(isinstance(text, str) for text in corpus):
        return
    for text, before, after in zip(corpus, old, _encode(small, corpus), strict=True):
        if isinstance(text, str) and not np.array_equal(np.take(kept, after), before):
            raise Unsupported(f"the trimmed tokenizer splits {text[:80]!r} into other pieces")


# -- the model -------------------------------------------------------------------------------------


def renumber(
    graph: Graph, vocabulary: Vocabulary, kept: np.ndarray, untied: bool | None = None
) -> None:
    """Renumbers ids in ``graph``, in place: ``kept``, ascending, are the old ids of the new ones. Logits of
    the vocabulary shrink.

    Raises:
        InvalidOption: a use of ids or logits is ambiguous or cannot be changed.
    """
    if clipped := [item.node for item in vocabulary.lookups if item.clipped]:
        raise InvalidOption(f"{clipped[0].label} reads ids behind a Clip, whose bounds are old ids")
    heads = [head for head in find_heads(graph, vocabulary) if head.tied or untied is not False]
    flows = [_flow(head, untied) for head in heads]
    lookups = {(item.node, item.ids) for item in vocabulary.lookups}
    for value in vocabulary.inputs:
        for ids in walk_ids(value)[1]:
            _give_old_ids(ids, [u for u in ids.uses if not _takes_new_ids(u, lookups)], kept)
    cut: Cut = {}
    cut_tables(vocabulary, kept, cut)
    cut_heads(heads, kept, cut)
    for node in (node for flow in flows for node in flow):
        for index, operand in enumerate(node.inputs):
            if operand is not None and operand.is_constant and _spans(operand, vocabulary.size):
                cut_last_axis(node, index, kept)
        graph.infer(node)


def _flow(head: Head, untied: bool | None) -> list[Node]:
    """The nodes between a head and the outputs."""
    if not head.tied and untied is None:
        raise InvalidOption(
            f"{head.node.label} has as many columns as there are ids, but weights of its own: "
            "say with untied whether they are logits of the ids"
        )
    flow = logits_flow(head.node.output)
    if flow is None:
        raise InvalidOption(
            f"the logits of {head.node.label} do not reach the outputs by elementwise ops alone"
        )
    return flow


def _spans(constant: Value, size: int) -> bool:
    shape = constant.tensor.shape
    return bool(shape) and shape[-1] == size


def _takes_new_ids(use: Use, lookups: set[tuple[Node, int]]) -> bool:
    """Whether a use of ids is unaffected by their renumbering."""
    node = use.user
    if isinstance(node, Graph):
        return node.outer is None
    if (node, use.operand) in lookups or has_trait(node, "shape"):
        return True
    return use.operand == 0 and moves(node)


def _give_old_ids(ids: Value, readers: Sequence[Use], kept: np.ndarray) -> None:
    if not readers:
        return
    graph = ids.graph
    old = gather_rows(graph.constant(kept.astype(ids.tensor.dtype.numpy), "old_ids"), ids)
    for use in readers:
        graph.set_input(use.user, use.operand, old)
