"""The decoder's sizes and the names of its inputs and outputs."""

LAYERS, HEADS, HEAD_DIM = 2, 4, 32
WIDTH = HEADS * HEAD_DIM
POSITIONS = 256
BYTES = 256

_CACHE = [f"{kind}_{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
PAST = tuple(f"past_{name}" for name in _CACHE)
PRESENT = tuple(f"present_{name}" for name in _CACHE)
LOGITS = "logits"
OUTPUTS = (LOGITS, *PRESENT)
DYNAMIC_SHAPES = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "past + sequence"},
    **{name: {0: "batch", 2: "past"} for name in PAST},
}
