"""Exact and approximate search over item vectors: NumPy in and out, neither Spark nor torch."""
