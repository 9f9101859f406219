"""Every parser that sees bytes of a client or of an upstream, and what must hold whatever they are.

A target is a function of some bytes that returns where its property holds and raises where it does not. The same
functions run over the corpus, over what hypothesis makes, and under atheris, which looks for new paths in the parsers.
Not crashing is never the property: a parser may raise what it documents, and must keep what it promises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.hostile.targets import answers, bodies, envelopes, lua, streams, texts, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for module in (answers, bodies, envelopes, lua, streams, texts, tokens)
    for target in module.TARGETS
}
