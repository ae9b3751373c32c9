"""Activations on disk and in memory: stores, selections, and other programs' files. NumPy only."""
