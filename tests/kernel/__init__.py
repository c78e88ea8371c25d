"""Compiled bodies beside their references, at every level of instructions, on any number of threads."""
