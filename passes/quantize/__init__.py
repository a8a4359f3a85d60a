"""Passes that move weights and activations to fewer bits."""
