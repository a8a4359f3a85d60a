"""Passes that write a tensor of weights as a product of smaller ones."""
