"""A model and its tokenizer that lose the same ids: pieces, ids and outputs on the corpus stay."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import tersor
from tersor.backends import ort
from tersor.errors import InvalidModel, InvalidOption, Unsupported
from tersor.frontends import Imported, load_model
from tersor.ir import Graph, parse, verify
from tersor.models import corpus
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pipeline import Pipeline, weight_bytes
from tersor.pipeline.registry import optimization
from tersor.trimming.tokenizers import first_pieces, trim_tokenizer, unknown_id

TEXTS = tuple(corpus.paragraphs("json")[:60])
OTHERS = tuple(corpus.paragraphs("email")[:60])


@cache
def learned(kind: str) -> bytes:
    """A tokenizer that learned from more than the corpus, as a tokenizer.json."""
    train = [*TEXTS, *OTHERS]
    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)  # fmt: skip
    elif kind == "words":
        made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False)  # fmt: skip
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)  # fmt: skip
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.Lowercase()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False)  # fmt: skip
    made.train_from_iterator(train, trainer)
    made.add_tokens(["json.dumps"])
    if kind == "unigram":
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # fmt: skip
        made.enable_padding(pad_id=0, pad_token="<pad>")
    if kind == "wordpiece":
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        made.enable_truncation(16)
    return str(made.to_str()).encode()


def opened(data: bytes) -> Tokenizer:
    made = tokenizers.Tokenizer.from_buffer(data)
    made.no_padding()
    made.no_truncation()
    return made


KINDS = ["bpe", "words", "unigram", "wordpiece"]


# -- the tokenizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("some", [1, 5, 60])
def test_a_smaller_tokenizer_cuts_the_corpus_into_the_same_pieces(kind: str, some: int) -> None:
    data, texts = learned(kind), TEXTS[:some]
    before = [e.ids for e in opened(data).encode_batch(list(texts))]
    small, old = trim_tokenizer(data, {i for ids in before for i in ids})
    after = opened(small).encode_batch(list(texts))
    assert [[old[i] for i in e.ids] for e in after] == before
    assert old == sorted(set(old))
    assert opened(small).get_vocab_size() == len(old) < opened(data).get_vocab_size()
    # Every id stands for the piece that it stood for.
    whole, part = opened(data), opened(small)
    assert [part.id_to_token(i) for i in range(len(old))] == [whole.id_to_token(i) for i in old]
    assert opened(small).decode(after[0].ids) == opened(data).decode(before[0])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_the_padding_and_the_post_processor_follow(kind: str) -> None:
    data = learned(kind)
    small, old = trim_tokenizer(
        data, {i for e in opened(data).encode_batch([TEXTS[0]]) for i in e.ids}
    )
    before, after = json.loads(data), json.loads(small)
    for was, now in zip(before["added_tokens"], after["added_tokens"], strict=True):
        assert (was["content"], was["id"]) == (now["content"], old[now["id"]])
    if kind == "unigram":
        assert after["padding"]["pad_id"] == old.index(0)
        assert old[after["model"]["unk_id"]] == before["model"]["unk_id"]
        assert [old[i] for i in after["post_processor"]["special_tokens"]["</s>"]["ids"]] == [1]
    if kind == "wordpiece":
        assert [old[after["post_processor"][n][1]] for n in ("sep", "cls")] == [3, 2]
        assert after["truncation"] == before["truncation"]
    assert (unknown_id(small) is None) == (kind == "bpe")


def test_bytes_stay_so_that_any_text_has_ids() -> None:
    data = learned("bpe")
    small, _ = trim_tokenizer(data, opened(data).encode("json").ids)
    text = "Grüße, 世界 ☃"
    assert opened(small).decode(opened(small).encode(text).ids) == text


def test_merges_of_bpe_are_those_among_what_is_kept() -> None:
    data = json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6, "cc": 7}, "merges": ["a b", "b c", "ab c", "c c"]}}).encode()  # fmt: skip
    small, old = trim_tokenizer(data, [6])
    model = json.loads(small)["model"]
    # abc is made by way of ab, so bc need not stay.
    assert old == [0, 1, 2, 3, 4, 6]
    assert model["vocab"] == {"u": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5}
    assert model["merges"] == ["a b", "ab c"]


def test_a_word_that_was_unknown_stays_unknown() -> None:
    made = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "ab": 1, "a": 2, "##bc": 3, "xbc": 4, "x": 5}, unk_token="[UNK]", max_input_chars_per_word=9))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    data = str(made.to_str()).encode()
    assert made.encode("abc").ids == [0]  # ab, then nothing begins with ##c
    used = {i for text in ("abc", "a", "xbc") for i in made.encode(text).ids} | {3}
    small, _ = trim_tokenizer(data, used)
    assert opened(small).encode("abc").tokens == ["a", "##bc"]
    assert first_pieces(data, ["abc", "q", "a" * 10]) == {1}
    small, _ = trim_tokenizer(data, used | first_pieces(data, ["abc"]))
    assert opened(small).encode("abc").tokens == ["[UNK]"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"{", InvalidModel, "the tokenizer is not JSON"),
        (b"[]", InvalidModel, "it has no model"),
        (b'{"model": {"type": "Sorcery"}}', Unsupported, "of type Sorcery; supported are WordPiece"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}}', InvalidOption, "id 7 is not in"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 7}}, "post_processor": {"type": "New"}}', Unsupported, "post-processor New"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": [], "continuing_subword_prefix": "##"}}', Unsupported, "continuing_subword_prefix"),
    ],
)  # fmt: skip
def test_what_is_no_tokenizer_is_refused(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trim_tokenizer(data, [7])


# -- models with their tokenizers ------------------------------------------------------------------


def optimized(graph: Graph) -> Graph:
    return Pipeline(optimization()).run(graph)


def encoded(data: bytes, texts: list[str], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, i64[len(texts), longest]."""
    rows = [e.ids[:100] for e in opened(data).encode_batch(texts)]
    shape = (len(rows), max(map(len, rows)))
    ids, mask = np.full(shape, padding), np.zeros(shape, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def old_ids(data: bytes, small: bytes) -> np.ndarray:
    """The old id of each new one, by their pieces."""
    whole, part = opened(data), opened(small)
    return np.array([whole.token_to_id(part.id_to_token(i)) for i in range(part.get_vocab_size())])


@pytest.mark.slow
def test_minilm_with_the_words_of_a_corpus(tmp_path: Path) -> None:
    from tersor.models.minilm import build, data

    folder, texts = build.directory(), list(data.sentences()[:200])
    original = (folder / "tokenizer.json").read_bytes()
    trimmed = tersor.trim_vocabulary(folder, texts)
    small = trimmed.files["tokenizer.json"]
    before, after = optimized(load_model(folder).graph), trimmed.graph
    kept = old_ids(original, small)
    assert len(kept) < 2000
    table = (30522 - len(kept)) * 384 * 4
    assert weight_bytes(before) - weight_bytes(after) == table
    run, some = ort.Evaluator(), texts[:32]
    (old, mask), (new, _) = encoded(original, some, 0), encoded(small, some, 0)
    np.testing.assert_array_equal(kept[new], old)
    expected = run(before, {"input_ids": old, "attention_mask": mask})
    for name, got in run(after, {"input_ids": new, "attention_mask": mask}).items():
        np.testing.assert_array_equal(got, expected[name])
    artifact = tersor.compile(trimmed, recipe="fp32", measure=False)
    artifact.save(tmp_path / "out")
    loaded = tersor.load(tmp_path / "out")
    assert loaded.files["tokenizer.json"] == small
    got = loaded.run({"input_ids": new, "attention_mask": mask})
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in expected.items()}
    assert tersor.convert(trimmed).files == trimmed.files


@pytest.mark.slow
def test_gpt2_with_its_tied_head() -> None:
    import torch
    import transformers

    data = learned("bpe")
    size = opened(data).get_vocab_size()
    config = transformers.GPT2Config(vocab_size=size, n_positions=128, n_embd=32, n_layer=2, n_head=2, use_cache=False)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    examples = {"input_ids": torch.ones((3, 17), dtype=torch.long)}
    graph = load_model(model, example_inputs=examples, dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}}, output_names=["logits"]).graph  # fmt: skip
    texts = list(TEXTS[:20])
    trimmed = tersor.trim_vocabulary(Imported(graph, files={"tokenizer.json": data}), texts)
    small = trimmed.files["tokenizer.json"]
    kept = old_ids(data, small)
    (old, _), (new, _) = encoded(data, texts, 0), encoded(small, texts, 0)
    np.testing.assert_array_equal(kept[new], old)
    assert str(trimmed.graph.outputs[0].type) == f"f32[batch, sequence, {len(kept)}]"
    before = optimized(graph)
    # The table, which is the head too.
    assert weight_bytes(before) - weight_bytes(trimmed.graph) == (size - len(kept)) * 32 * 4
    run = ort.Evaluator()
    expected = run(before, {"input_ids": old})["logits"][..., kept]
    # A product of fewer columns may be summed up in another order.
    got = run(trimmed.graph, {"input_ids": new})["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_t5_with_one_vocabulary_for_both_sides() -> None:
    import torch
    import transformers

    from tersor.models.t5_tiny import build

    data = learned("unigram")
    size = opened(data).get_vocab_size()
    config = transformers.T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    model = build.EncoderDecoder(transformers.T5ForConditionalGeneration(config)).eval()
    graph = load_model(model, example_inputs=build.example_inputs(), dynamic_shapes=build.DYNAMIC_SHAPES, output_names=["logits"]).graph  # fmt: skip
    texts = list(TEXTS[:10])
    trimmed = tersor.trim_vocabulary(Imported(graph, files={"tokenizer.json": data}), texts)
    small = trimmed.files["tokenizer.json"]
    kept = old_ids(data, small)
    (old, mask), (new, _) = encoded(data, texts, 0), encoded(small, texts, 0)
    np.testing.assert_array_equal(kept[new], old)
    before, run = optimized(graph), ort.Evaluator()
    assert weight_bytes(before) - weight_bytes(trimmed.graph) == (size - len(kept)) * 32 * 4
    feeds = [
        {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :9]}
        for ids in (old, new)
    ]
    expected = run(before, feeds[0])["logits"][..., kept]
    got = run(trimmed.graph, feeds[1])["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_roberta_counts_positions_by_comparing_ids_with_the_padding() -> None:
    import torch
    import transformers

    data = learned("bpe")
    size = opened(data).get_vocab_size()
    config = transformers.RobertaConfig(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=size + 128, pad_token_id=size - 1)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    examples = {"input_ids": torch.full((3, 17), 5)}
    graph = load_model(model, example_inputs=examples, dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}}).graph  # fmt: skip
    texts = list(TEXTS[:5])
    trimmed = tersor.trim_vocabulary(Imported(graph, files={"tokenizer.json": data}), texts)
    small = trimmed.files["tokenizer.json"]
    count = len(old_ids(data, small))  # The padding is the last id of both.
    (old, _), (new, _) = encoded(data, texts, size - 1), encoded(small, texts, count - 1)
    assert count < size and (new == count - 1).any()
    before, run = optimized(graph), ort.Evaluator()
    for name, expected in run(before, {"input_ids": old}).items():
        np.testing.assert_array_equal(run(trimmed.graph, {"input_ids": new})[name], expected)


# -- small graphs ----------------------------------------------------------------------------------

WORDS = json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(["u", "a", "b", "c", "d", "e"])}, "unk_token": "u"}}).encode()  # fmt: skip
TAGGER = """graph main(%ids: i64[n, s]) -> (y = %y) {
  @table: f32[6, 4] = dense normal(0)
  @w: f32[4, 6] = dense normal(1)
  @pad: i64[] = dense [3]
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
  %p: bool[n, s] = Equal(%ids, @pad)
  %f: f32[n, s] = Cast(%p) {to = 1, round_mode = "up", saturate = 1}
  %one: i64[1] = Shape(%ids) {start = 0, end = 1}
  %axis: i64[1] = Sub(%one, %one)
  %t: f32[n, s] = ReduceSum(%x, @last) {keepdims = 0}
  %y: f32[n, s] = Add(%t, %f)
}""".replace("  @w:", "  @last: i64[1] = dense [-1]\n  @w:")
CORPUS = ["a c", "c e e"]  # ids 1 3 and 3 5 5; u, which has id 0, stays.


def trimmed_words(text: str, corpus: Any = CORPUS, **options: Any) -> tuple[Graph, Imported]:
    graph = parse(text, TABLE)
    made = tersor.trim_vocabulary(
        Imported(graph, files={"tokenizer.json": WORDS}), corpus, **options
    )
    verify(made.graph)
    return graph, made


@pytest.mark.parametrize("corpus", [CORPUS, [[1, 3], [3, 5, 5]], ["a c", np.array([3, 5, 5])]])
def test_what_compares_ids_has_the_old_ones(corpus: Any) -> None:
    graph, made = trimmed_words(TAGGER, corpus)
    assert json.loads(made.files["tokenizer.json"])["model"]["vocab"] == {
        "u": 0,
        "a": 1,
        "c": 2,
        "e": 3,
    }
    old = np.array([[1, 3, 0], [3, 5, 5]])
    new = np.searchsorted([0, 1, 3, 5], old)
    expected = evaluate(graph, {"ids": old})["y"]
    np.testing.assert_array_equal(evaluate(made.graph, {"ids": new})["y"], expected)
    assert [v.tensor.shape for v in made.graph.constants.values() if "table" in v.name] == [(4, 4)]


UNTIED = """graph main(%ids: i64[n, s]) -> (y = %y) {
  @table: f32[6, 4] = dense normal(0)
  @w: f32[4, 6] = dense normal(1)
  @b: f32[6] = dense normal(2)
  @half: f32[] = dense [0.5]
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
  %h: f32[n, s, 6] = tersor.Linear(%x, @w, @b) {activation = "none"}
  %c: f32[n, s, 6] = Mul(%h, @half)
  %d: f32[n, s, 6] = Add(%c, @b)
  %y: f32[n, s, 6] = Tanh(%d)
}"""


def test_columns_that_are_no_tables_are_asked_about() -> None:
    with pytest.raises(InvalidOption, match="say with untied whether they are logits of the ids"):
        trimmed_words(UNTIED)
    old = np.array([[1, 3, 0], [3, 5, 5]])
    new = np.searchsorted([0, 1, 3, 5], old)
    graph, logits = trimmed_words(UNTIED, untied=True)
    expected = evaluate(graph, {"ids": old})["y"]
    assert str(logits.graph.outputs[0].type) == "f32[n, s, 4]"
    # Products of four and of six columns round alike but for the last bit.
    np.testing.assert_allclose(
        evaluate(logits.graph, {"ids": new})["y"], expected[..., [0, 1, 3, 5]], rtol=1e-6
    )
    _, classes = trimmed_words(UNTIED, untied=False)
    np.testing.assert_array_equal(evaluate(classes.graph, {"ids": new})["y"], expected)


SOFTMAX = """graph main(%ids: i64[n, s]) -> (y = %y) {
  @table: f32[6, 4] = dense normal(0)
  %x: f32[n, s, 4] = Gather(@table, %ids) {axis = 0}
  %t: f32[4, 6] = Transpose(@table) {perm = [1, 0]}
  %h: f32[n, s, 6] = MatMul(%x, %t)
  %y: f32[n, s, 6] = Softmax(%h) {axis = -1}
}"""
CLIPPED = """graph main(%ids: i64[n, s]) -> (y = %x) {
  @table: f32[6, 4] = dense normal(0)
  @lo: i64[] = dense [1]
  @hi: i64[] = dense [4]
  %c: i64[n, s] = Clip(%ids, @lo, @hi)
  %x: f32[n, s, 4] = Gather(@table, %c) {axis = 0}
}"""
NO_TABLE = """graph main(%x: f32[n, 4]) -> (y = %y) {
  %y: f32[n, 4] = Neg(%x)
}"""


@pytest.mark.parametrize(
    ("text", "corpus", "options", "message"),
    [
        (SOFTMAX, CORPUS, {}, "do not reach the outputs by elementwise ops alone"),
        (CLIPPED, CORPUS, {}, "reads ids behind a Clip"),
        (NO_TABLE, CORPUS, {}, "no input indexes an embedding table"),
        (TAGGER, [], {}, "no ids are used: the vocabulary would be empty"),
        (TAGGER, [""], {}, "no ids are used: the vocabulary would be empty"),
        (TAGGER, [[1, 6]], {}, "id 6 is outside the vocabulary of 6"),
        (TAGGER, [[-7]], {}, "id -7 is outside the vocabulary of 6"),
        (TAGGER, CORPUS, {"input": "idz"}, "no input 'idz', did you mean 'ids'?"),
        (TAGGER, CORPUS, {"tokenizer": "/no/such/tokenizer.json"}, "No such file"),
    ],
)  # fmt: skip
def test_refusals(text: str, corpus: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message.replace("?", r"\?")):
        trimmed_words(text, corpus, **options)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused() -> None:
    held = json.loads(WORDS)
    token = {"id": 6, "content": "f", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    data = json.dumps({**held, "added_tokens": [token]}).encode()
    with pytest.raises(
        InvalidOption, match="the tokenizer has id 6, but the model only 6 ids: they do not match"
    ):
        tersor.trim_vocabulary(
            Imported(parse(TAGGER, TABLE), files={"tokenizer.json": data}), ["a"]
        )


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"the model has no tokenizer.json"):
        tersor.trim_vocabulary(parse(TAGGER, TABLE), CORPUS)


def test_the_vocabulary_of_a_file_beside_an_onnx_model(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_bytes(WORDS)
    made = tersor.trim_vocabulary(parse(TAGGER, TABLE), CORPUS, tokenizer=path)
    assert set(made.files) == {"tokenizer.json"}
