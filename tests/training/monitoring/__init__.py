"""Monitoring a run."""
