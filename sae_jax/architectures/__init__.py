"""Sparse autoencoders, one file each."""
