"""Reading raw logs and publishing what the jobs make."""
