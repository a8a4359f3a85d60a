"""Trimming the vocabulary of a model together with its tokenizer and configuration files."""
