"""A bidirectional LSTM that tells what each character of Python code belongs to."""
