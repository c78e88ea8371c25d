"""What makes the site out of the pages and the package: used by conf.py, and tested in tests/docs."""
