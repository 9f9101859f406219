"""Security tiers: the word a client puts beside an envelope, and the models that an operator has put behind it.

Deny by default: a model of which nothing was said is on the standard tier alone, so that a client who asks for `high`
or `maximum` gets a machine that somebody has named as such, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEADER = "x-security-tier"


class Tier(StrEnum):
    """The words of the published protocol."""

    STANDARD = "standard"
    HIGH = "high"
    MAXIMUM = "maximum"


DEFAULT = frozenset({Tier.STANDARD})


@dataclass(frozen=True, slots=True)
class Tiers:
    """Which models are on which tiers, the same for every key."""

    of: Mapping[str, frozenset[Tier]] = field(default_factory=dict)  # by canonical name
    others: frozenset[Tier] = DEFAULT  # of every model that `of` does not name

    def allow(self, model: str, tier: Tier) -> bool:
        """Whether the canonical name `model` may be asked for at `tier`."""
        return tier in self.of.get(model, self.others)

    def unlike(self, tier: Tier) -> tuple[bool, tuple[str, ...]]:
        """Whether `tier` is open to a model that nothing is said of, and the names with which it is the other way."""
        usual = tier in self.others
        return usual, tuple(name for name, tiers in self.of.items() if (tier in tiers) != usual)

    @classmethod
    def at(cls, tier: Tier, usual: bool, unlike: Iterable[str]) -> Tiers:
        """What `unlike` said, as far as that one tier goes."""
        only, none = frozenset({tier}), frozenset[Tier]()
        return cls(dict.fromkeys(unlike, none if usual else only), only if usual else none)


def asked_for(header: str | None) -> Tier | None:
    """The tier that a header names, without one the standard tier; None for a word that is no tier."""
    if header is None:
        return Tier.STANDARD
    try:
        return Tier(header)
    except ValueError:
        return None


def parse_upstreams(text: str) -> dict[Tier, tuple[str, ...]]:
    """The base URLs of tiers that have upstreams of their own: `high=http://a:11434,http://b:11434;maximum=…`.

    ValueError on anything else; what is a good URL is for others to say.
    """
    found: dict[Tier, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, urls = part.partition("=")
        tier = next((tier for tier in Tier if tier == name.strip()), None)
        listed = tuple(url.strip() for url in urls.split(",") if url.strip())
        if tier is None or not equals or not listed or tier in found:
            raise ValueError(f"{part!r} is not TIER=URL,URL with one of {', '.join(Tier)}, named once")
        found[tier] = listed
    return found
