"""Kernels that only generation uses: one token at a time, packed weights, sampling the next token."""
