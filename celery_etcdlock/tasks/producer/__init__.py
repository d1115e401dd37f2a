"""What the process does that calls a task: takes its lock where the lifetime says so, and publishes the message."""
