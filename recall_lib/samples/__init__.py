"""Clicks to samples to windows, in NumPy and Arrow: this runs without Spark, in executors and in training ranks alike."""
