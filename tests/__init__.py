"""Tests of tinygpt, in folders of the package's own names. What several share: conftest.py, compat.py, processes.py."""
