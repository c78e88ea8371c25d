"""Optimizers, clipping, schedules."""
