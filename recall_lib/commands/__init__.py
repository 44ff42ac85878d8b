"""The `recall` command: one file a tool, named as it is typed, and the simulator that two of them use."""
