"""Helpers that start Spark, read with it and run in its executors; they do not depend on what the rows mean."""
