"""Sampling, beams, processors, stop strings, the decoder's cache, scores."""
