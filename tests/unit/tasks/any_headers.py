"""Headers of ours as anybody may send them, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from celery_etcdlock.tasks.message.headers import OUR_HEADERS

__all__ = ["HEADERS", "VALUES"]

#: By their number, so that none of them is ever printed.
HUGE = [10**400, -(10**400), 2**63, 1e300, "x" * 30_000]
NUMBERS = st.integers() | st.floats() | st.integers(0, 3).map(HUGE.__getitem__)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.integers(0, 4).map(HUGE.__getitem__)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3)
)
#: Nearly right, which is where a reader errs.
CLAIM = st.tuples(LEAVES, LEAVES, LEAVES).map(list) | st.tuples(st.text(), st.text(), NUMBERS).map(list)
VALUES = ANYTHING | CLAIM | st.lists(CLAIM, max_size=200) | st.tuples(*[LEAVES] * 4).map(list)
HEADERS = st.dictionaries(st.sampled_from([*OUR_HEADERS, "id", "retries", "replaced_task_nesting"]), VALUES)
