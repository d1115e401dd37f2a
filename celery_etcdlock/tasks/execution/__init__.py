"""What the process does that runs a task, from taking the lock to its release or handover."""
