"""Numbers without a graph: arrays in, arrays out."""
