"""A streamed answer as a row of frames: a line of NDJSON, an event of an SSE stream.

The engine cuts what arrives into whole frames, whatever the chunk boundaries, and asks the dialect to judge each. What
passes, passes at once and as it is: the beginning of an unfinished frame too, as soon as it shows that it is content.
Only bytes that may still turn out to be an error, or the usage that the client did not ask for, wait for the rest of
their frame. An ordinary chunk is one ordinary frame, and costs the dialect's `glance` and no more.

A frame longer than LONGEST is not kept: it passes, and its tail is read for the counts that close it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from processor.tally import Tally, Usage

# The final line of /api/generate carries the context, an integer for each token of it: some 900 KB for 128k tokens.
LONGEST = 1 << 20
TAIL = 8 << 10  # what is kept of a longer frame; the counts come last, within some 300 bytes
_SIGNS = 4 << 10  # a frame that does not show in its first bytes that it is content has to wait for its end
TAINT = b'"error"'  # what has this key is an error until it is parsed


class Judgement(NamedTuple):
    """What to do with a whole frame."""

    delta: bool  # it carries content, and the answer was not at its end: it counts, and may be where the cap cuts
    instead: bytes | None = None  # what the client gets in its place; None: the frame as it is


PLAIN = Judgement(delta=False)
DELTA = Judgement(delta=True)


class Dialect(Protocol):
    """How one kind of stream is framed, read and ended. It writes what it reads into the tally that it was given."""

    terminator: bytes

    def glance(self, chunk: bytes) -> Judgement | None:
        """Judge a chunk that is exactly one ordinary frame; None if it may be anything else. This is the fast path."""

    def boundary(self, data: bytes | bytearray, start: int, scan: int, *, whole: bool) -> int:
        """Where the frame that begins at `start` ends, or -1. Up to `scan` nothing was found before; `whole` is False
        where `start` lies within a frame whose beginning is gone."""

    def opened(self, head: bytearray) -> bool:
        """Whether an unfinished frame already shows that it is content."""

    def judge(self, frame: bytes) -> Judgement:
        """Judge a whole frame."""

    def judge_tail(self, tail: bytes) -> None:
        """Take what can be known of a frame of which only the end was kept, its content counted as one delta."""

    def fault(self) -> bytes:
        """Note that the upstream failed, and say so in our words."""

    def ending(self, frame: bytes) -> bytes:
        """End the answer for having reached its cap; `frame` is the first delta beyond it."""

    def closing(self, *, broken: bool) -> bytes:
        """What is missing at the end of the stream; `broken` if it ended within a frame."""


class StreamMeter:
    """Reads, and where it must edits, one streamed answer."""

    def __init__(self, dialect: Dialect, tally: Tally, cap: int) -> None:
        self.cut = False
        self._dialect = dialect
        self._tally = tally
        self._cap = cap
        self._partial = bytearray()  # the frame that has not ended yet
        self._fresh()

    def _fresh(self) -> None:
        """A new frame begins."""
        self._gone = 0  # bytes of the unfinished frame that the client already has
        self._scan = 0  # bytes of it that were searched before
        self._open = False  # it showed that it is content
        self._tainted = False  # it has a key that errors have
        self._long = False  # only its tail is kept
        self._doomed = False  # long, and taken for an error: nothing of it passes

    def usage(self) -> Usage:
        return self._tally.usage()

    def feed(self, chunk: bytes, end: bool) -> bytes | None:
        if self.cut:
            return b"" if chunk else None
        if not self._partial and not end:
            judgement = self._dialect.glance(chunk)
            if judgement is PLAIN:
                return None
            if judgement is not None and self._room():
                self._tally.deltas += 1
                return judgement.instead
        passed = self._walk(chunk, end)
        return None if passed == chunk else passed

    def _room(self) -> bool:
        return self._tally.deltas < self._cap + self._tally.spare

    def _walk(self, chunk: bytes, end: bool) -> bytes:
        """Judge every frame that ends in this chunk; return what the client gets of it."""
        data: bytes | bytearray = chunk
        if self._partial:
            self._partial += chunk
            data = self._partial
        out: list[bytes] = []
        start, scan = 0, max(0, self._scan - 2)  # an SSE event ends in up to three bytes
        while (stop := self._dialect.boundary(data, start, scan, whole=not self._long)) >= 0:
            out.append(self._settle(bytes(data[start:stop])))
            if self.cut:
                break
            start = scan = stop
        broken = False
        if end and start < len(data) and not self.cut:
            rest, gone = bytes(data[start:]), self._gone
            out.append(self._settle(rest))
            seen = out[-1] or rest[:gone]
            broken = bool(seen) and not seen.endswith(self._dialect.terminator)
            start = len(data)
        if self.cut:
            start = len(data)
        if data is self._partial:
            del self._partial[:start]
        else:
            self._partial = bytearray(data[start:])
        if self._partial:
            out.append(self._keep())
        if end and not self.cut:
            out.append(self._dialect.closing(broken=broken))
        return b"".join(out)

    def _settle(self, frame: bytes) -> bytes:
        """The frame has ended: count it, and return what the client still gets of it."""
        gone, long, doomed = self._gone, self._long, self._doomed
        self._fresh()
        if doomed:
            return self._dialect.fault()
        if long:
            self._dialect.judge_tail(frame)
            return frame[gone:]
        judgement = self._dialect.judge(frame)
        if judgement.delta:
            if not self._room():
                self.cut = True
                return self._dialect.ending(frame)
            self._tally.deltas += 1
        if judgement.instead is None:
            return frame[gone:]
        # What is gone can not be taken back: the half of it is closed, so that what follows stands by itself.
        return self._dialect.terminator + judgement.instead if gone else judgement.instead

    def _keep(self) -> bytes:
        """The frame goes on in the next chunk: return what of it may pass already."""
        partial = self._partial
        if not self._long:
            self._tainted = self._tainted or partial.find(TAINT, max(0, self._scan - len(TAINT))) >= 0
            self._open = self._open or (self._gone == 0 and self._dialect.opened(partial[:_SIGNS]))
            if len(partial) > LONGEST:
                self._long = True
                self._doomed = self._tainted and not self._open
        passes = b""
        # At the cap the next delta is where the stream is cut, and nothing of it may be gone by then.
        if self._long or (self._open and not self._tainted and self._room()):
            passes = b"" if self._doomed else bytes(partial[self._gone :])
            if self._long:
                del partial[:-TAIL]
            self._gone = len(partial)
        self._scan = len(partial)
        return passes
