"""Calibration inputs: files, texts and what else gives batches, checked and gone over a batch at a time."""
