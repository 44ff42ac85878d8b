"""Towers, losses and checkpoints in PyTorch: neither Spark nor log files are known here."""
