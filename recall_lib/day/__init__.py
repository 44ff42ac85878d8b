"""One run of one day in the driver: its context, how a job runs, and the inputs that several jobs put together."""
