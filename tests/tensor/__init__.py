"""Tensors, graphs, a user's own Functions, and what they refuse."""
