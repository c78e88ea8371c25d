"""Texts, token files, batches."""
