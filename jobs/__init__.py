"""One spark-submit script a stage; `recall <job>` runs the same code."""
