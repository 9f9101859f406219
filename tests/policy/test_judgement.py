"""The judgement: what a tally means, in headers and refusals. Pure values in, pure values out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.rules.decision import Reason
from policy.rules.judgement import BUDGET_PERIODS, Figures, Mode, Plan, Tally, judge, rate_headers
from policy.rules.limits import Limits
from policy.rules.tenants import Key, Tenant

KEY = Key(9, "nz_abcdefghi", "hash", Tenant(7, "acme"))
PLAN = Plan("request", 1, Mode.RESERVE, KEY, "/api/chat", model="llama3.1:8b")


def figures(limits: Limits, **counts: int) -> Figures:
    names = ("requests", "tokens", "under_way", "day", "month", "total", "open")
    return Figures(limits, *(counts.get(name, 0) for name in names))


def tally(*scopes: Figures, refused: Reason | None = None, wait_ms: int = 0, **more: Any) -> Tally:
    return Tally(refused, wait_ms, cap=10, prompt_tokens=1, epoch="e", scopes=scopes, **more)


def headers(*scopes: Figures, admitted: bool = True) -> dict[str, str]:
    return {name.removeprefix("x-"): value for name, value in rate_headers(tally(*scopes), admitted=admitted)}


def test_without_limits_everything_is_unlimited() -> None:
    assert headers(figures(Limits(), requests=5, tokens=7, total=9)) == {
        "ratelimit-limit-requests": "unlimited",
        "ratelimit-remaining-requests": "unlimited",
        "ratelimit-limit-tokens": "unlimited",
        "ratelimit-remaining-tokens": "unlimited",
        "budget-period": "total",
        "budget-tokens-remaining": "unlimited",
    }


def test_of_every_pair_the_scope_that_leaves_least() -> None:
    tenant = figures(Limits(rpm=100, tpm=50, budget_day=900), requests=98, tokens=20, day=10)
    key = figures(Limits(rpm=10, tpm=60, budget_month=500), requests=1, tokens=20, open=15, month=100)
    assert headers(tenant, key) == {
        "ratelimit-limit-requests": "100",
        "ratelimit-remaining-requests": "1",
        "ratelimit-limit-tokens": "60",
        "ratelimit-remaining-tokens": "25",
        "budget-period": "month",
        "budget-tokens-remaining": "385",
    }


def test_an_admitted_request_counts_and_a_refused_one_does_not() -> None:
    scope = figures(Limits(rpm=3), requests=2)
    assert headers(scope)["ratelimit-remaining-requests"] == "0"
    assert headers(scope, admitted=False)["ratelimit-remaining-requests"] == "1"


bounds = st.one_of(st.none(), st.integers(0, 10**6))
counts = st.integers(0, 10**6)
scopes = st.lists(
    st.builds(
        Figures, st.builds(Limits, bounds, bounds, bounds, bounds, bounds, bounds), counts, counts, counts, counts,
        counts, counts, counts,
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@given(scopes=scopes, admitted=st.booleans())
def test_headers_are_whole_numbers_or_unlimited_and_never_negative(scopes: list[Figures], admitted: bool) -> None:
    found = headers(*scopes, admitted=admitted)
    assert found.pop("budget-period") in BUDGET_PERIODS
    assert all(value == "unlimited" or int(value) >= 0 for value in found.values())
    for what, name in (("rpm", "requests"), ("tpm", "tokens")):
        set_ = [getattr(scope.limits, what) for scope in scopes if getattr(scope.limits, what) is not None]
        assert (found[f"ratelimit-limit-{name}"] == "unlimited") == (not set_)
        assert (found[f"ratelimit-remaining-{name}"] == "unlimited") == (not set_)


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60), (86_399_001, 86_400), (0, None)]
)
def test_a_wait_is_stated_in_whole_seconds_and_is_never_too_short(wait_ms: int, seconds: int | None) -> None:
    denial = judge(PLAN, tally(figures(Limits(rpm=0)), refused=Reason.RATE_REQUESTS, wait_ms=wait_ms))
    assert denial is not None
    assert denial.retry_after == seconds


def test_what_fits_is_not_denied() -> None:
    assert judge(PLAN, tally(figures(Limits(rpm=1)))) is None


def test_a_denial_says_who_and_what_and_how_its_scopes_stand() -> None:
    scope = figures(Limits(budget_day=100), day=95)
    denial = judge(PLAN, tally(scope, refused=Reason.BUDGET_DAY, wait_ms=5000, recorded=False))
    assert denial is not None
    assert (denial.reason, denial.status, denial.recorded) == (Reason.BUDGET_DAY, 429, False)
    assert (denial.tenant, denial.tenant_id, denial.key_id, denial.key_prefix) == ("acme", 7, 9, "nz_abcdefghi")
    assert (denial.model, denial.endpoint) == ("llama3.1:8b", "/api/chat")
    assert dict(denial.headers)["x-budget-tokens-remaining"] == "5"


def test_a_refusal_for_what_was_asked_counts_as_a_request_and_has_no_wait() -> None:
    plan = Plan("request", 1, Mode.DENY, KEY, "/api/chat", reason=Reason.MODEL)
    denial = judge(plan, tally(figures(Limits(rpm=5), requests=1)))
    assert denial is not None
    assert (denial.reason, denial.retry_after) == (Reason.MODEL, None)
    assert dict(denial.headers)["x-ratelimit-remaining-requests"] == "3"


def test_over_its_rate_a_refusal_is_one_for_the_rate() -> None:
    """Probing has a rate: past it nobody learns whether the model is there."""
    plan = Plan("request", 1, Mode.DENY, KEY, "/api/chat", reason=Reason.MODEL)
    denial = judge(plan, tally(figures(Limits(rpm=5), requests=5), refused=Reason.RATE_REQUESTS, wait_ms=100))
    assert denial is not None
    assert denial.reason is Reason.RATE_REQUESTS


def test_what_was_counted_before_is_not_counted_in_the_headers_again() -> None:
    plan = Plan("request", 1, Mode.DENY, KEY, "/api/chat", reason=Reason.MODEL, counted=True)
    denial = judge(plan, tally(figures(Limits(rpm=5), requests=1)))
    assert denial is not None
    assert dict(denial.headers)["x-ratelimit-remaining-requests"] == "4"
