"""What a message carries of its locks, and when it is due."""
