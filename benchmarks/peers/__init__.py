"""Lock clients, each a process of its own that speaks ``line_protocol``."""
