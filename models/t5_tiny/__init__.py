"""T5-like encoder-decoder: puts the underscores back into names."""
