"""Petastorm to PyTorch, on one or many ranks."""

import os

# Both are read when torch is imported. Threads that wait in a loop for one another are five times as slow where something
# else has part of a core; threads that sleep cost a sixth of the speed where nothing has.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Batches of runs have ever new shapes, and a kernel kept for each of the last 1,024 of them makes gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
