"""What opens doors: keys, publishable keys, session tokens, signatures, and the grant that Envoy carries."""

from __future__ import annotations

import json
import re

from policy.rules import keys, publishable_keys, request_signature, session_token
from policy.rules.decision import Reason
from policy.rules.grant import Duty, Grant
from policy.rules.session_token import KeySet, Secret, SigningKey
from tests.hostile.targets.cutting import chance

NOW = 1_800_000_000.0
_KEY = SigningKey.derive(Secret(b"s" * 32), "one", b"1" * 32, NOW - 1000)
_KEYS = KeySet.of([_KEY], NOW, 0)
_GRANT = Grant("id", 1, Duty.METER, "/api/chat", "m:latest", True, 1, "t", 1, "nz_abcdefghi", "e", 5, 6)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def keys_have_one_spelling(data: bytes) -> None:
    """What is a key is the 44 characters that it prints, checksum and all; nothing around them is forgiven."""
    text = _text(data)
    found = keys.parse(text)
    if found is None:
        assert not (re.fullmatch(r"nz_[0-9A-Za-z]{35}", text[:-6]) and keys.checksum(text[:-6]) == text[-6:])
        return
    assert found.reveal() == text and len(text) == keys.KEY_LENGTH
    assert text[12:] not in repr(found) + str(found)
    for bent in (text + " ", " " + text, text + "\n", text[:-1], text.swapcase(), text[:-1] + "٣"):
        assert keys.parse(bent) is None
    assert not publishable_keys.well_formed(text)


def credentials_are_one_or_none(data: bytes) -> None:
    """Two header values: a credential is one that both agree on, without blanks, or none that could open a door."""
    one, _, other = _text(data).partition("\n")
    found = keys.credential({"authorization": one, "x-api-key": other})
    if found is None:
        assert not one.strip(" \t") and not other.strip(" \t")
        return
    if found:
        assert found in (one.split(" ")[-1].strip() or one, other.strip(" \t")) or one.strip(" \t").endswith(found)
        if one.strip(" \t"):
            assert other.strip(" \t") in ("", found)
            assert one.strip(" \t").lower().startswith("bearer ")
            assert not re.search(r"[\s,]", found)


def publishable_keys_are_no_keys(data: bytes) -> None:
    text = _text(data)
    if publishable_keys.well_formed(text):
        assert keys.parse(text) is None
        assert re.fullmatch(r"nzp_[0-9A-Za-z]{32}", text, re.ASCII) and len(text) == 36


def tokens_are_ours_or_refused(data: bytes) -> None:
    """A token that is presented is refused with a reason; only what our key signed could pass, and no fuzzer has it."""
    text = _text(data)
    assert session_token.verify(text, _KEYS, NOW) is Reason.SESSION_INVALID
    assert session_token.verify(f"{_KEY.header}.{text}", _KEYS, NOW) is Reason.SESSION_INVALID


def signed_claims_are_whole(data: bytes) -> None:
    """Under our own signature anything may stand, as an older version could have written it: all of it is looked at."""
    signed = f"{_KEY.header}.{session_token.base64url(data)}"
    if len(signed) > session_token.MAX_LENGTH:
        return
    found = session_token.verify(f"{signed}.{_KEY.signature(signed)}", _KEYS, NOW)
    if isinstance(found, Reason):
        assert found is Reason.SESSION_INVALID
        return
    if isinstance(found, session_token.Expired):
        assert found.claims.expires_at <= NOW
        return
    claims, key = found
    assert key is _KEY
    assert session_token.SESSION_ID.fullmatch(claims.session_id)
    assert type(claims.tenant_id) is int and type(claims.expires_at) is int
    assert NOW < claims.expires_at <= claims.issued_at + session_token.MAX_LIFETIME
    assert claims.issued_at <= NOW + session_token.CLOCK_SKEW
    held = json.loads(data)
    assert (held["iss"], held["aud"], held["jti"]) == ("paddock", "paddock/openai", claims.session_id)


def signatures_sign_everything(data: bytes) -> None:
    """A true signature passes; with any byte of method, path, time or body changed, it does not."""
    drawn = chance(data)
    secret, timestamp = b"k" * 32, str(int(NOW * 1000))
    made = request_signature.sign(secret, "POST", "/openai/x", timestamp, data)
    headers = {"x-request-signature": made, "x-timestamp": timestamp}
    assert request_signature.verify(secret, "POST", "/openai/x", data, headers, NOW) == made.removeprefix("v1=")
    bent = bytearray(data or b"\0")
    bent[drawn.randrange(len(bent))] ^= drawn.randint(1, 255)
    wrong = Reason.SIGNATURE_WRONG
    assert request_signature.verify(secret, "POST", "/openai/x", bytes(bent), headers, NOW) is wrong
    assert request_signature.verify(secret, "GET", "/openai/x", data, headers, NOW) is wrong
    text = _text(data)
    if text != timestamp:
        found = request_signature.verify(secret, "POST", "/openai/x", data, headers | {"x-timestamp": text}, NOW)
        assert found in (wrong, Reason.SIGNATURE_MISSING)
    if text != made:
        found = request_signature.verify(
            secret, "POST", "/openai/x", data, headers | {"x-request-signature": text}, NOW
        )
        assert found in (wrong, Reason.SIGNATURE_MISSING)


def grants_are_read_whole(data: bytes) -> None:
    """A grant is read back as it was written, and anything else is ValueError."""
    text = _text(data)
    try:
        found = Grant.from_json(text)
    except ValueError:
        pass
    else:
        assert Grant.from_json(found.to_json()) == found
    name = text[:100]
    grant = Grant(**{field: getattr(_GRANT, field) for field in _GRANT.__dataclass_fields__} | {"tenant": name})
    assert Grant.from_json(grant.to_json()) == grant


TARGETS = (
    keys_have_one_spelling,
    credentials_are_one_or_none,
    publishable_keys_are_no_keys,
    tokens_are_ours_or_refused,
    signed_claims_are_whole,
    signatures_sign_everything,
    grants_are_read_whole,
)
