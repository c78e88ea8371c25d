"""One run on many processes.

    mpirun -n 4 tinygpt train --data my.txt

Every process has a copy of the model and computes the gradient of its share of the rows of each batch. The gradients
are summed over the processes, and all of them make the same update. The rest of tinygpt asks one small interface, the
`Communicator`, and never imports MPI or NCCL.

| file | contents |
|---|---|
| `communicator` | the interface, and its implementation for a single process |
| `values` | which small values may travel, and how |
| `mpi` | the MPI backend, through mpi4py |
| `sums` | how it makes a sum: by messages, or in memory that the processes of one machine share |
| `shared` | this memory |
| `pages` | huge pages for the arrays of a process that has a part of each batch |
| `launch` | which communicator this process has: was it started by mpirun, srun or the like? |
| `buckets` | gradients gathered into buckets, whose sums start while the backward pass still computes |
| `sharded` | an optimizer whose state is divided among the processes |
| `gpu` | the NCCL backend, whose calls are in `tinygpt/backends/cupy_nccl.py`, with everything else that knows CuPy |
| `voice` | only process 0 writes to the screen |
"""

from __future__ import annotations

from .buckets import BUCKET_BYTES, GradientBuckets
from .communicator import Communicator, Pending
from .launch import alone_under_launcher, current, launched, rank, size, use
from .sharded import ShardedOptimizer

__all__ = [
    "BUCKET_BYTES", "Communicator", "GradientBuckets", "Pending", "ShardedOptimizer",
    "alone_under_launcher", "current", "launched", "rank", "size", "use",
]  # fmt: skip
