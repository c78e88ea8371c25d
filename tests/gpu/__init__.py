"""What needs a GPU: `pytest -m gpu` where there is one."""
