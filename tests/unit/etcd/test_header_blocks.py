"""A remembered header block must be what the plain encoder would write at that very moment."""

from __future__ import annotations

from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.etcd.header_blocks import RememberingEncoder

LISTS = [((b":path", b"/a"),), ((b":path", b"/a"), (b"x", b"1")), ((b"x", b"2"), (b"te", b"trailers"))]
STEPS = st.lists(st.sampled_from([*LISTS, 0, 64, 100, 4096]), max_size=40)


@given(STEPS)
def test_the_bytes_are_those_of_an_encoder_that_remembers_nothing(steps: list[object]) -> None:
    remembering, plain = RememberingEncoder(), Encoder()
    for step in steps:
        if isinstance(step, int):
            remembering.header_table_size = plain.header_table_size = step
            continue
        assert isinstance(step, tuple)
        assert remembering.encode(step) == plain.encode(step)


def test_a_list_whose_fields_are_all_known_is_not_encoded_again() -> None:
    encoder = RememberingEncoder()
    headers = ((b":path", b"/a"), (b"x", b"1"))
    encoder.encode(headers)
    second = encoder.encode(headers)
    assert encoder.encode(headers) is second
    encoder.encode(((b"y", b"2"),))
    assert encoder.encode(headers) is not second
