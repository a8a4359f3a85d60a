"""A vocabulary made smaller: of a model, its tokenizer and the files beside them, together."""
