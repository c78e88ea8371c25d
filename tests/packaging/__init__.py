"""The README, the examples and the benchmarks, as a user runs them."""
