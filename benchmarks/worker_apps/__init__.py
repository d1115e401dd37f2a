"""Apps that the measurements' workers run."""
