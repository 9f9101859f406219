"""`policy/admission/evaluate.py` while no upstream answers: nobody learns which models there are or were."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from policy.admission.evaluate import Evaluator
from policy.rules.decision import Allow, Deny, Reason, Request
from policy.rules.judgement import Figures, Plan, Tally
from policy.rules.limits import UNLIMITED
from policy.rules.tenants import Key, Tenant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from policy.rules.settlement import Known

ONE_MODEL = Key(1, "nz_aaaaaaaaa", "$argon2id$", Tenant(1, "acme", models=frozenset({"llama3.1:8b"})))


class Keyring:
    async def authenticate(self, presented: str | None, address: str, now: datetime) -> Key | Deny:
        return ONE_MODEL


@dataclass
class Models:
    models: Mapping[str, SimpleNamespace] = field(default_factory=dict)
    reachable: bool = False
    refreshed: int = 0

    def refresh_soon(self) -> None:
        self.refreshed += 1

    def upstream_for(self, model: str) -> str:
        return ""


@dataclass
class Counters:
    plans: list[Plan] = field(default_factory=list)

    async def admit(self, plan: Plan, known: Known | None = None) -> Tally:
        self.plans.append(plan)
        return Tally(None, 0, plan.cap, 0, "epoch", (Figures(UNLIMITED, 0, 0, 0, 0, 0, 0, 0),))


class Seeds:
    async def read(self, tenant_id: int, key_id: int) -> Known:
        raise AssertionError("the counters are there")


def judged(models: Models, model: str, counters: Counters | None = None) -> Allow | Deny:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = Request("id", 1, "POST", "/api/chat", False, {"authorization": "Bearer k"}, body, True, "192.0.2.7")
    evaluator = Evaluator(Keyring(), models, counters or Counters(), Seeds(), 1000)
    return asyncio.run(evaluator.check(request))


@pytest.mark.parametrize("model", ["llama3.1:8b", "forbidden:7b"])
def test_where_nothing_is_known_because_nothing_answers_every_model_is_502(model: str) -> None:
    models, counters = Models(), Counters()
    denial = judged(models, model, counters)
    assert isinstance(denial, Deny)
    assert (denial.reason, denial.status) == (Reason.UPSTREAM, 502)
    assert models.refreshed == 1
    assert [plan.reason for plan in counters.plans] == [Reason.UPSTREAM]  # it counts as a request of its key


@pytest.mark.parametrize("model", ["llama3.1:8b", "forbidden:7b"])
def test_an_upstream_that_answers_and_has_nothing_is_403(model: str) -> None:
    denial = judged(Models(reachable=True), model)
    assert isinstance(denial, Deny)
    assert denial.reason is Reason.MODEL


def test_what_was_known_a_moment_ago_is_still_let_through() -> None:
    known = {"llama3.1:8b": SimpleNamespace(name="llama3.1:8b"), "forbidden:7b": SimpleNamespace(name="forbidden:7b")}
    assert isinstance(judged(Models(known), "llama3.1:8b"), Allow)
    for model in ("forbidden:7b", "absent:1b"):
        denial = judged(Models(known), model)
        assert isinstance(denial, Deny)
        assert denial.reason is Reason.MODEL
