"""``python -m examples`` lists what there is to run; ``python -m examples.demo`` is all of it in one show."""
