"""What executors run: Arrow batches in, Arrow batches out.

Beside each such function stands its other end in the driver: what sends it models and arrays, or reads what it has counted.
"""
