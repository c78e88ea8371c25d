"""The compiled kernels: one module made of the files in this folder, one file an operation.

A single module keeps the thread pool single, and lets the compiler see everything at once. `setup.py` compiles it
once for each level of vector instructions.
"""

include "common.pxi"
include "../threads/threads.pyx"
include "layer_norm.pyx"
include "residual_layer_norm.pyx"
include "gelu.pyx"
include "bias_gelu.pyx"
include "matmul/product.pyx"
include "linear.pyx"
include "softmax.pyx"
include "cross_entropy.pyx"
include "embedding.pyx"
include "dropout.pyx"
include "attention/attention.pyx"
include "adamw.pyx"
include "clip.pyx"
include "decode/decode_block.pyx"
