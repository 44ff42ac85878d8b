"""Raw logs to canonical clicks, as Arrow columns: which files, which bytes, which values. Runs in executors, without Spark."""
