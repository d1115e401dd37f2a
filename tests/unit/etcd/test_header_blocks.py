"""A remembered header block must be what the plain encoder or decoder would make of it at that very moment."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.etcd.header_blocks import MOST_BLOCKS_DECODED, RememberingDecoder, RememberingEncoder

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


@given(STEPS)
def test_the_headers_are_those_of_a_decoder_that_remembers_nothing(steps: list[object]) -> None:
    encoder, remembering, plain = Encoder(), RememberingDecoder(), Decoder()
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # told twice, hpack's encoder forgets to tell the decoder
                encoder.header_table_size = step
            continue
        assert isinstance(step, tuple)
        block = encoder.encode(step)
        assert list(remembering.decode(block, raw=True)) == list(plain.decode(block, raw=True))
        assert list(remembering.decode(b"", raw=True)) == []


def test_a_block_whose_fields_are_all_known_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = Encoder(), RememberingDecoder()
    headers = [(b"x", b"1"), (b"y", b"2")]
    decoder.decode(encoder.encode(headers), raw=True)
    block = encoder.encode(headers)
    first = list(decoder.decode(block, raw=True))
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "decode", None)
        assert list(decoder.decode(block, raw=True)) == first
    decoder.decode(encoder.encode([(b"z", b"3")]), raw=True)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "decode", None)
        with pytest.raises(TypeError):
            decoder.decode(block, raw=True)


def test_a_server_that_never_repeats_itself_fills_no_memory() -> None:
    decoder = RememberingDecoder()
    for number in range(10 * MOST_BLOCKS_DECODED):
        value = str(number).encode()
        decoder.decode(b"\x00\x01m" + bytes([len(value)]) + value, raw=True)
        assert len(decoder._lists) <= MOST_BLOCKS_DECODED
