"""Tests of tinygpt, in folders of the package's own names. What several folders share: conftest.py, compat.py."""
