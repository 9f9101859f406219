"""The key grammar, and a key that does not print."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import os
import pickle
import random
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.keys import ApiKey, credential, digest, mint, parse

BASE62 = string.digits + string.ascii_letters
_bits = st.integers(0, 2**64).map(lambda seed: random.Random(seed).randbytes)


@given(_bits)
def test_a_minted_key_parses(source: object) -> None:
    key = mint(source)  # type: ignore[arg-type]  # hypothesis' map loses the signature
    text = key.reveal()
    assert len(text) == 44
    assert text.startswith("nz_")
    assert set(text[3:]) <= set(BASE62)
    assert key.prefix == text[:12]
    assert parse(text) == key


@given(_bits, st.integers(0, 43), st.sampled_from(BASE62))
def test_one_wrong_character_is_found(source: object, place: int, letter: str) -> None:
    text = mint(source).reveal()  # type: ignore[arg-type]  # as above
    typo = text[:place] + letter + text[place + 1 :]
    assert (parse(typo) is None) == (typo != text)


@given(_bits, st.integers(0, 42))
def test_two_letters_swapped_are_found(source: object, place: int) -> None:
    text = mint(source).reveal()  # type: ignore[arg-type]  # as above
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert (parse(swapped) is None) == (swapped != text)


@given(st.one_of(st.text(max_size=60), st.text(alphabet="nz_0aZ", min_size=44, max_size=44)))
def test_garbage_is_no_key(text: str) -> None:
    key = parse(text)
    assert key is None or key.reveal() == text


@pytest.mark.parametrize("change", ["", " ", "\n", "\x00", "0"])
def test_the_length_is_exact(change: str) -> None:
    text = mint(os.urandom).reveal()
    assert (parse(text + change) is None) == bool(change)
    assert (parse(change + text) is None) == bool(change)


def test_only_ascii_letters_and_digits() -> None:
    text = mint(os.urandom).reveal()
    assert parse(text[:20] + "٣" + text[21:]) is None
    assert parse(text[:20] + "ｋ" + text[21:]) is None
    assert parse(text.replace("nz_", "NZ_")) is None


def test_a_publishable_key_is_not_taken_for_a_secret_one() -> None:
    text = mint(os.urandom).reveal()
    assert parse("nzp_" + text[3:]) is None
    assert parse("nzp_" + text[3:-1]) is None


def test_letters_are_unbiased() -> None:
    source = random.Random(1).randbytes
    counts = Counter("".join(mint(source).reveal()[3:38] for _ in range(2000)))
    assert set(counts) == set(BASE62)
    expected = 2000 * 35 / 62
    # With every byte taken modulo 62 the first eight letters would come a quarter more often.
    assert all(abs(count - expected) < 0.18 * expected for count in counts.values())


def test_a_broken_random_source_is_noticed() -> None:
    with pytest.raises(ValueError, match="random"):
        mint(lambda count: b"\xff" * count)


def test_a_key_does_not_print() -> None:
    key = mint(os.urandom)
    secret = key.reveal()[12:]
    for shown in (repr(key), str(key), f"{key}", f"{key!r:>80}", "%s" % key, repr([key]), repr({"key": key})):  # noqa: UP031  # one of the ways
        assert secret not in shown
        assert key.reveal() not in shown
    assert key.prefix in repr(key)


def test_a_key_does_not_leave_by_a_back_door() -> None:
    key = mint(os.urandom)
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        copy.deepcopy(key)
    with pytest.raises(TypeError):
        json.dumps({"key": key})
    with pytest.raises(TypeError):
        hash(key)
    with pytest.raises(TypeError):
        vars(key)


def test_keys_are_equal_by_content() -> None:
    key = mint(os.urandom)
    assert key == parse(key.reveal())
    assert key != mint(os.urandom)
    assert key != key.reveal()


def test_digest_is_keyed() -> None:
    key, pepper = mint(os.urandom), os.urandom(32)
    assert digest(key, pepper) == hmac.new(pepper, key.reveal().encode(), hashlib.sha256).digest()
    assert digest(key, pepper) != digest(key, os.urandom(32))
    with pytest.raises(ValueError, match="pepper"):
        digest(key, b"")


@pytest.mark.parametrize(
    ("headers", "presented"),
    [
        ({}, None),
        ({"authorization": ""}, None),
        ({"authorization": "Bearer nz_a"}, "nz_a"),
        ({"authorization": "bearer nz_a"}, "nz_a"),
        ({"authorization": "BEARER   nz_a  "}, "nz_a"),
        ({"x-api-key": "nz_a"}, "nz_a"),
        ({"x-api-key": " nz_a\t"}, "nz_a"),
        ({"authorization": "", "x-api-key": "nz_a"}, "nz_a"),
        ({"authorization": "Bearer nz_a", "x-api-key": "nz_a"}, "nz_a"),
        ({"authorization": "Bearer nz_a", "x-api-key": ""}, "nz_a"),
        ({"authorization": "Bearer nz_a", "x-api-key": "nz_b"}, ""),
        ({"authorization": "Basic bnpfYTo=", "x-api-key": "nz_a"}, ""),
        ({"authorization": "Basic bnpfYTo="}, ""),
        ({"authorization": "nz_a"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"authorization": "Bearernz_a"}, ""),
        ({"authorization": "Bearer nz_a,Bearer nz_b"}, ""),
        ({"authorization": "Bearer nz_a nz_b"}, ""),
        ({"authorization": "Bearer nz_a\r\nx: y"}, ""),
        ({"cookie": "nz_a", "x-goog-api-key": "nz_a"}, None),
    ],
)
def test_credential(headers: dict[str, str], presented: str | None) -> None:
    assert credential(headers) == presented


def test_an_api_key_is_made_by_mint_and_parse() -> None:
    assert isinstance(parse(mint(os.urandom).reveal()), ApiKey)
