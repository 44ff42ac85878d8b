"""Exact and approximate search over item vectors, and the baselines. NumPy in and out; uses FAISS and torch, not Spark."""
