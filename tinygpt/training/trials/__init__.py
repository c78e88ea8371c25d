"""Trials around a run.

| file | contents |
|---|---|
| `trial` | steps that leave a trainer as it was |
| `dry_run`, `lr_find` | what a run takes, measured; the learning-rate range test |
| `sweep` | a search over settings: what to try, and its progress |
"""
