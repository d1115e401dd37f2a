"""What is known of a locked task before it is called: its class, its options, how its lock is named."""
