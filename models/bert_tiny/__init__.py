"""BERT-tiny: which subject a paragraph of documentation is about."""
