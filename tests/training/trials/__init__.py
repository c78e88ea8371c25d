"""Trials around a run: --dry-run, --lr-find, --sweep."""
