"""Every case that the meter in Python is tested by, with the meter of Envoy beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.envoy.lua_meter import pair_for
from tests.processor import test_usage, test_usage_hostile, test_usage_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (test_usage, test_usage_hostile, test_usage_streams)
ALONE = {
    "test_every_two_cuts",  # minutes; test_meter_lua.py cuts at random
    "test_only_metered_endpoints_have_a_meter",  # Lua answers nil
    "test_a_broken_encoding_keeps_what_was_read_of_it",  # Lua inflates nothing, nor below
    "test_compressed_it_is_read_and_left_alone",
    "test_a_packed_flood_is_read_in_small_pieces",
    "test_a_damaged_gzip_passes",
    "test_any_bytes_called_compressed_pass",
}


@pytest.fixture(autouse=True, scope="module")
def in_pairs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "meter_for", pair_for)
        yield


for module in MODULES:
    for name, test in vars(module).items():
        if name.startswith("test_") and name not in ALONE:
            assert name not in globals(), name
            globals()[name] = test
