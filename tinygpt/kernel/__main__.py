"""`python -m tinygpt.kernel`: which body is live for each kernel."""

from . import report

print(report())
