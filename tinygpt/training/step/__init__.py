"""How one step of a run is taken.

| file | contents |
|---|---|
| `steps` | a step: gradients, clipping, update |
| `accumulation` | the gradients of a step's batches, weighted by their targets |
| `graphed_step` | forward and backward pass, and the update, as a CUDA graph |
| `planned_step` | forward and backward pass as a plan, on a CPU |
| `model_facts` | what a plan and a graph depend on |
| `update` | norm, clipping and AdamW on a GPU, without waiting |
| `late_steps` | steps on a GPU whose loss is read one step late |
| `loss_scale` | loss scaling for float16 |
| `share` | one process's share of a step |
"""
