"""One run of one day, seen from the driver: its context, how a job runs, and the tables that several jobs read put together."""
