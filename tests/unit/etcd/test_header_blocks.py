"""Our header blocks say what they should, and a remembered block means what hpack makes of it at that very moment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from celery_etcdlock.etcd.frames import Http2Error
from celery_etcdlock.etcd.header_blocks import (
    MOST_BLOCKS_REMEMBERED,
    Fields,
    RememberingDecoder,
    header_block,
)

NAMES = st.sampled_from([b":method", b":path", b":authority", b"te", b"grpc-timeout", b"token", b"x" * 300])
VALUES = st.one_of(st.sampled_from([b"POST", b"/a", b""]), st.binary(max_size=5000))
LISTS = [
    ((b":status", b"200"),),
    ((b":status", b"200"), (b"content-type", b"application/grpc")),
    ((b"grpc-status", b"0"), (b"grpc-message", b"")),
    ((b"grpc-message", b"odd"), (b"x", b"1")),
]
STEPS = st.lists(st.sampled_from([*LISTS, 0, 64, 100, 4096]), max_size=40)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5))
def test_a_block_of_ours_means_what_it_was_made_of(fields: list[tuple[bytes, bytes]]) -> None:
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    decoder.max_header_list_size = 1 << 20
    block = header_block(fields, secret=b"token")
    assert [tuple(found) for found in decoder.decode(block, raw=True)] == fields
    assert not decoder.header_table.dynamic_entries, "it needs no table"


def test_a_token_is_never_indexed() -> None:
    (found,) = Decoder().decode(header_block([(b"token", b"abc")], secret=b"token"), raw=True)
    assert found.indexable is False


def fields_of(headers: Any) -> Fields:
    found = {bytes(name): bytes(value) for name, value in headers}
    return Fields(*(found.get(name, b"") for name in (b":status", b"content-type", b"grpc-status", b"grpc-message")))


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
        assert remembering.decode(block) == fields_of(plain.decode(block, raw=True))
        assert remembering.decode(b"") == Fields()


def test_a_block_whose_fields_are_all_known_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = Encoder(), RememberingDecoder()
    headers = [(b":status", b"200"), (b"y", b"2")]
    decoder.decode(encoder.encode(headers))
    block = encoder.encode(headers)
    first = decoder.decode(block)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "decode", None)
        assert decoder.decode(block) is first
    decoder.decode(encoder.encode([(b"z", b"3")]))
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "decode", None)
        with pytest.raises(Http2Error):
            decoder.decode(block)


def test_a_server_that_never_repeats_itself_fills_no_memory() -> None:
    decoder = RememberingDecoder()
    for number in range(10 * MOST_BLOCKS_REMEMBERED):
        value = str(number).encode()
        decoder.decode(b"\x00\x01m" + bytes([len(value)]) + value)
        assert len(decoder._known) <= MOST_BLOCKS_REMEMBERED


@given(st.binary(max_size=200))
def test_whatever_a_block_holds_it_is_read_or_refused(block: bytes) -> None:
    decoder = RememberingDecoder()
    with suppress(Http2Error):
        assert isinstance(decoder.decode(block), Fields)


def test_a_bomb_of_headers_is_refused() -> None:
    decoder = RememberingDecoder()
    big = b"\x40\x01x" + b"\x7f\xa1\x1e" + b"y" * 4000  # put into the table, 4000 bytes
    decoder.decode(big)
    with pytest.raises(Http2Error, match="COMPRESSION_ERROR"):
        decoder.decode(b"\xbe" * 10_000)  # ten thousand times that entry: 40 MB


def test_a_time_limit_that_strikes_while_headers_are_read_goes_on_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(*_: object, **__: object) -> None:
        raise SoftTimeLimitExceeded(1)

    decoder = RememberingDecoder()
    monkeypatch.setattr(decoder._decoder, "decode", strike)
    with pytest.raises(SoftTimeLimitExceeded):
        decoder.decode(b"\x88")
