"""DataFrames in, DataFrames out, without torch. Only the tasks of `samples.split_samples` write files.

Most functions only plan. Those that return numbers instead of a DataFrame run Spark jobs: `events.account`, `vocab.assign_ids`,
`holdout.newest_training_click`, `metrics.report`. `accuracy` has plain formulas, which training shares.
"""
