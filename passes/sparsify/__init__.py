"""Unstructured and semi-structured sparsity: shapes stay, pruned weights are zeros under a mask."""
