"""From clicks to samples to windows, in NumPy and Arrow. Executors and training ranks run this code; it does not use Spark."""
