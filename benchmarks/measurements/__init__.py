"""One module per measurement: its name is the measurement's, its docstring's first line the table's title."""
