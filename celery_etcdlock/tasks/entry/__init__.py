"""How a call comes to a task's body: who calls, and that nobody gets there without the lock."""
