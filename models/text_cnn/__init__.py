"""A convolutional network over words that tells which module a passage of code is from."""
