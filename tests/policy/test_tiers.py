"""Tiers, and the subject of an envelope's grant: what a judgement depends on survives its journey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.bounds import Bounds
from policy.rules.grant import Duty, Grant
from policy.rules.limits import Limits
from policy.rules.subject import Subject
from policy.rules.tenants import Key, Tenant
from policy.rules.tiers import Tier, Tiers, asked_for, parse_upstreams

NAMES = ("a:1", "b:2", "c:3", "d:4")
some = st.frozensets(st.sampled_from(Tier))
tiers = st.builds(Tiers, st.dictionaries(st.sampled_from(NAMES[:3]), some), some)
models = st.frozensets(st.sampled_from(NAMES))
shapes = st.builds(Bounds, tools=st.sampled_from((1, 512)), operator_options=st.frozensets(st.just("num_ctx")))
limits = st.builds(Limits, rpm=st.none() | st.integers(0, 9), budget_total=st.none() | st.integers(0, 9))


def test_words() -> None:
    assert asked_for(None) is Tier.STANDARD
    assert [asked_for(tier.value) for tier in Tier] == list(Tier)
    for word in ("", "High", "high ", "standard,high", "ultra"):
        assert asked_for(word) is None


def test_without_a_word_there_is_standard() -> None:
    assert [Tiers().allow("a:1", tier) for tier in Tier] == [True, False, False]


@given(tiers, st.sampled_from(Tier))
def test_one_tier_is_enough_of_them(all_tiers: Tiers, tier: Tier) -> None:
    again = Tiers.at(tier, *all_tiers.unlike(tier))
    assert [again.allow(name, tier) for name in NAMES] == [all_tiers.allow(name, tier) for name in NAMES]
    assert not any(again.allow(name, other) for name in NAMES for other in Tier if other is not tier)


@given(
    st.builds(Tenant, st.just(7), st.just("t"), st.just(False), st.booleans(), models, st.none() | st.integers(1, 9),
              limits, shapes),
    st.none() | models, st.none() | st.integers(1, 9), limits, tiers, st.sampled_from(Tier),
)  # fmt: skip
def test_a_subject_judges_as_its_key_does(
    tenant: Tenant, own: frozenset[str] | None, most: int | None, bounds: Limits, all_tiers: Tiers, tier: Tier
) -> None:
    key = Key(
        3, "nz_123456789", "$argon2id$secret", tenant, models=own, max_tokens=most, limits=bounds, tiers=all_tiers
    )
    grant = Grant(
        request_id="r", started_at=1, duty=Duty.ENVELOPE, endpoint="/e", model="", stream=False, tenant_id=7,
        tenant="t", key_id=3, key_prefix=key.prefix, epoch="", prompt_tokens=0, cap=0,
        subject=Subject.of(key, tier, "192.0.2.1"),
    )  # fmt: skip
    text = grant.to_json()
    assert "argon2" not in text
    back = Grant.from_json(text)
    assert back == grant
    assert back.subject is not None
    again = back.subject.key(id=3, counts_as=0, prefix=key.prefix, tenant_id=7, tenant="t")
    assert [again.may_use(name) for name in NAMES] == [key.may_use(name) for name in NAMES]
    assert [again.tiers.allow(name, tier) for name in NAMES] == [key.tiers.allow(name, tier) for name in NAMES]
    assert (again.max_tokens, again.limits, again.tenant.max_tokens, again.tenant.limits) == (
        key.max_tokens, key.limits, key.tenant.max_tokens, key.tenant.limits,
    )  # fmt: skip
    assert again.tenant.bounds == tenant.bounds
    assert again.hash == ""


def test_upstreams_of_tiers() -> None:
    assert parse_upstreams("") == {}
    assert parse_upstreams(" high = http://a:1 , http://b:2 ; maximum=http://c:3;") == {
        Tier.HIGH: ("http://a:1", "http://b:2"),
        Tier.MAXIMUM: ("http://c:3",),
    }
    for text in ("high", "high=", "ultra=http://a:1", "high=http://a:1;high=http://b:2", "=http://a:1"):
        with pytest.raises(ValueError):
            parse_upstreams(text)
