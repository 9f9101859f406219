"""Which route takes a request: Envoy's route matching, as far as a file tells it.

The answer has three values: yes, no, and None for "that depends on what this file does not say" (another header, a
cookie, a runtime fraction). A proof must hold for either way of a None.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher, RouteMatch
    from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

Maybe = bool | None


def matches(match: RouteMatch, method: str, path: str) -> Maybe:
    """Whether a route takes `method path`. A query string is there for matchers of `:path` alone, as Envoy has it."""
    bare = path.partition("?")[0]
    open_ends = (
        match.runtime_fraction, match.query_parameters, match.cookies, match.grpc, match.tls_context,
        match.dynamic_metadata, match.filter_state,
    )  # fmt: skip
    depends: list[Maybe] = [None] if any(open_ends) else []
    return _all([_path(match, bare), *(_header(header, method, path) for header in match.headers), *depends])


def _path(match: RouteMatch, path: str) -> Maybe:
    folded = match.case_sensitive is False
    asked = path.lower() if folded else path
    if match.connect_matcher is not None:
        return False
    if match.safe_regex is not None:
        return _regex(match.safe_regex.regex, path)
    if match.path_match_policy is not None:
        return None
    if match.path:
        return asked == (match.path.lower() if folded else match.path)
    prefix = match.path_separated_prefix or match.prefix or ""
    prefix = prefix.lower() if folded else prefix
    if match.path_separated_prefix:
        return asked == prefix or asked.startswith(f"{prefix}/")
    return asked.startswith(prefix)


def _header(header: HeaderMatcher, method: str, path: str) -> Maybe:
    value = {":method": method, ":path": path}.get(header.name)
    if value is None:
        return None
    found = _value(header, value)
    return found if found is None else found is not header.invert_match


def _value(header: HeaderMatcher, value: str) -> Maybe:
    if header.string_match is not None:
        return text_matches(header.string_match, value)
    if header.present_match is not None:
        return header.present_match
    if header.safe_regex_match is not None:
        return _regex(header.safe_regex_match.regex, value)
    if header.exact_match:
        return value == header.exact_match
    if header.prefix_match:
        return value.startswith(header.prefix_match)
    if header.suffix_match:
        return value.endswith(header.suffix_match)
    if header.contains_match:
        return header.contains_match in value
    return None if header.range_match is not None else True  # nothing said: present


def text_matches(match: StringMatcher, value: str) -> Maybe:
    if match.safe_regex is not None:
        return _regex(match.safe_regex.regex, value)
    if match.custom is not None:
        return None

    def folded(text: str) -> str:
        return text.lower() if match.ignore_case else text

    asked = folded(value)
    if match.prefix:
        return asked.startswith(folded(match.prefix))
    if match.suffix:
        return asked.endswith(folded(match.suffix))
    if match.contains:
        return folded(match.contains) in asked
    return asked == folded(match.exact or "")


def _regex(pattern: str, value: str) -> Maybe:
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:  # of RE2's own: not readable here, so nothing is proven by it
        return None


def _all(parts: Iterable[Maybe]) -> Maybe:
    found: list[Maybe] = list(parts)
    if False in found:
        return False
    return None if None in found else True
