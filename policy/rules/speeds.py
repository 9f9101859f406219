"""How fast each model answers, learned from what the upstream reports: for answers nobody saw any of.

A client that leaves before a document comes has still had the machine work for it. What was produced is not known to
anybody then, but how long it took is, and how fast the model is; their product is charged, marked as an estimate.
"""

from __future__ import annotations

MODELS_MAX = 1000
FIRST_GUESS = 20.0  # tokens per second: a middling model on a middling machine
_WEIGHT = 0.2


class Speeds:
    """Tokens per second by model: a moving average."""

    def __init__(self) -> None:
        self._of: dict[str, float] = {}

    def learn(self, model: str, tokens: int, nanoseconds: int) -> None:
        """An answer of `tokens` took the upstream so long; what is too short to say anything is passed over."""
        if tokens < 8 or nanoseconds < 1_000_000:
            return
        seen = min(tokens / nanoseconds * 1e9, 10_000.0)
        before = self._of.get(model)
        if before is None and len(self._of) >= MODELS_MAX:
            return
        self._of[model] = seen if before is None else before + _WEIGHT * (seen - before)

    def produced(self, model: str, seconds: float, most: int) -> int:
        """What a model has likely produced in so many seconds."""
        return min(most, round(max(seconds, 0.0) * self._of.get(model, FIRST_GUESS)))
