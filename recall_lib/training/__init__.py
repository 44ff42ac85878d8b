"""Petastorm to PyTorch, on one or many Horovod ranks."""
