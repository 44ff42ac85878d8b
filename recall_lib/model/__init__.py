"""Towers, losses and checkpoints in PyTorch; this package uses neither Spark nor log files."""
