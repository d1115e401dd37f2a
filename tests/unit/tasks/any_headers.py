"""Headers of ours as anybody may send them, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from celery_etcdlock.tasks.headers import OUR_HEADERS

__all__ = ["HEADERS", "VALUES"]

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), True, False, 2**63, 1e300])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.just("x" * 30_000)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3)
)
#: Nearly right, which is where a reader errs.
CLAIM = st.tuples(LEAVES, LEAVES, LEAVES).map(list) | st.tuples(st.text(), st.text(), NUMBERS).map(list)
VALUES = ANYTHING | CLAIM | st.lists(CLAIM, max_size=200) | st.tuples(*[LEAVES] * 4).map(list)
HEADERS = st.dictionaries(st.sampled_from([*OUR_HEADERS, "id", "retries", "replaced_task_nesting"]), VALUES)
