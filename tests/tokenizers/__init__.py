"""Bytes, characters and byte-level BPE."""
