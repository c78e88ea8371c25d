"""The loop, checkpoints, and the folder of a run."""
