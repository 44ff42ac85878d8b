"""DataFrames in, DataFrames out; no torch, and no file but those that `samples.split_samples` has its tasks write.

Most only plan. What gives numbers in place of a DataFrame has counted: `events.account`, `vocab.assign_ids`, `metrics.report`.
`accuracy` has plain formulas, which training shares.
"""
