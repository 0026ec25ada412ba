"""The cache on NVIDIA GPUs: Triton kernels, one per file; README.md tells how they are launched."""
