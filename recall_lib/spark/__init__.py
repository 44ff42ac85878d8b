"""What starts Spark, reads with it and runs in its executors, whatever the rows mean."""
