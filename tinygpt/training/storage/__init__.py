"""The folder of a run.

| file | contents |
|---|---|
| `folder` | which files a run may touch, locking, how a new run replaces an older one |
| `saving`, `state` | saving and restoring a checkpoint (`tinygpt/checkpoint.py`); its progress, checked |
| `export` | the model for other programs, next to the checkpoints |
"""
