"""Exact and approximate search over item vectors, and the baselines: NumPy in and out, by FAISS and torch, without Spark."""
