"""Petastorm to PyTorch, on one or many Horovod ranks."""

import os

# Read when torch is imported. Threads that wait in a loop for one another are five times as slow where something else has
# part of a core; threads that sleep cost a sixth of the speed where nothing has.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
