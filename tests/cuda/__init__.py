"""The CUDA kernels and the backend "cupy" without a GPU: emulated, on stand-ins, broken on purpose."""
