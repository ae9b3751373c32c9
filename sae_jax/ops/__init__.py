"""Numerics below an architecture: matrix products, exact top-k, and kernels."""
