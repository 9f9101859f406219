"""The gate: who judges a request, by its path alone. Sessions have paths of their own, and keys have the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from policy.admission.sessions import PATH
from policy.rules.decision import Deny, Reason

if TYPE_CHECKING:
    from policy.rules.decision import Allow, Answer, Request


class Keys(Protocol):
    """Judges requests that come with a key."""

    async def check(self, request: Request) -> Allow | Deny: ...


class Sessions(Protocol):
    """Judges requests of pages."""

    async def check(self, request: Request) -> Allow | Deny | Answer: ...


class Gate:
    """`sessions` None: there are none here, and their paths do not exist."""

    def __init__(self, keys: Keys, sessions: Sessions | None) -> None:
        self._keys = keys
        self._sessions = sessions

    async def check(self, request: Request) -> Allow | Deny | Answer:
        if request.path != PATH and not request.path.startswith("/openai/"):
            return await self._keys.check(request)
        return Deny(Reason.ENDPOINT) if self._sessions is None else await self._sessions.check(request)
