"""Passes that bring a graph to one form and keep its values."""
