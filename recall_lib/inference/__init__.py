"""The executor side: functions from iterators of Arrow batches to iterators of Arrow batches."""
