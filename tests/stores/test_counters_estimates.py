"""What a prompt is taken to cost before it is known: learned for each tenant and model, within bounds."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.stores.memory import MemoryStore
from tests.stores.counting import NOW, Open, admit, grant, key, plan, used


@settings(max_examples=200, deadline=None)
@given(prompts=st.lists(st.tuples(st.integers(1, 10**7), st.integers(0, 10**7)), max_size=60))
def test_the_estimator_stays_within_its_bounds(prompts: list[tuple[int, int]]) -> None:
    """Whatever prompts cost: images, caches, nothing at all."""
    model = MemoryStore(NOW)
    for prompt_bytes, tokens in prompts:
        model.learn(7, "m", prompt_bytes, tokens)
        assert 500 <= model.ratios.get((7, "m"), 3500) <= 20_000
    assert 8 + 1000 * 0.05 <= model.estimate(7, "m", 1000) <= 8 + 2.2 * 1000 + 1


@pytest.mark.parametrize("bytes_per_token", [0.6, 2, 4.1, 7, 15])
def test_the_estimator_learns_what_a_model_makes_of_a_byte(store: Open, bytes_per_token: float) -> None:
    """After some dozens of requests it is right to a tenth above, and it keeps models apart."""

    async def scenario() -> None:
        async with store() as counters:
            of = key()
            for number in range(60):
                size = 200 + 37 * (number % 11)
                asked = plan(number, of, prompt_bytes=size)
                tally = await admit(counters, asked)
                await counters.settle(grant(asked, tally), used(round(size / bytes_per_token), 1))
            tally = await admit(counters, plan("now", of, prompt_bytes=10_000))
            assert 10_000 / bytes_per_token < tally.prompt_tokens < 10_000 / bytes_per_token * 1.25 + 8
            other = await admit(counters, plan("other", of, prompt_bytes=10_000, model="another"))
            assert other.prompt_tokens == 3858

    asyncio.run(scenario())
