"""Functions that executors run, from Arrow batches to Arrow batches.

Next to each one is its counterpart in the driver, which sends it models and arrays or reads its counts.
"""
