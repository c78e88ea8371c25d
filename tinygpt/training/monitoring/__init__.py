"""What a run shows and records.

| file | contents |
|---|---|
| `progress`, `reporting`, `metrics`, `picture` | the progress bar, the output lines, the metrics file, the loss curve |
| `watch` | hooks of the training loop |
| `following`, `loggers` | those of `tinygpt train`: samples, a time limit, speed; TensorBoard and other loggers |
| `layer_norms` | the norms of each layer, --watch-layers |
| `estimate`, `energy` | FLOPs and the processor's peak; energy use |
"""
