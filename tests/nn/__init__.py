"""Module, layers, packed weights."""
