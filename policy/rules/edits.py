"""Where a body has to be edited before an upstream sees it: found while it is judged, filled in when it is admitted.

For Ollama a completion cap of zero or less is no cap, and null is absent; either is replaced like a missing one.
`max_completion_tokens`, which Ollama does not know, becomes `max_tokens`. Streams of the OpenAI endpoints tell their
usage only when asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policy.rules.grant import Splice
from policy.rules.strict_json import NotAcceptable, Object

if TYPE_CHECKING:
    from policy.rules.strict_json import Member, Places

_MAX_COUNT = 1 << 31  # Go's int32, the narrowest that a count goes through on its way to the runner
_CAPS = ("max_tokens", "max_completion_tokens")


class Slot(NamedTuple):
    """A place in the body, in bytes, that takes a value with something before and after it."""

    offset: int
    length: int
    before: str
    after: str

    def filled(self, value: str) -> Splice:
        return Splice(self.offset, self.length, self.before + value + self.after)


class Slots(NamedTuple):
    """Every place of one body that may have to change."""

    model: Slot | None = None
    cap: tuple[Slot, ...] = ()
    usage: Slot | None = None
    gone: Slot | None = None  # what the upstream is not to see


NO_SLOTS = Slots()


class Editor(NamedTuple):
    """Finds places in one body."""

    whole: Object
    places: Places

    def replace(self, member: Member, before: str = "", after: str = "") -> Slot:
        """The value of a member."""
        start = self.places.byte(member.start)
        return Slot(start, self.places.byte(member.end) - start, before, after)

    def put(self, parent: Object, name: str, before: str = "", after: str = "") -> Slot:
        """The value of member `name` of `parent`, or a new member just after the opening brace."""
        member = parent.members.get(name)
        if member is not None:
            return self.replace(member, before, after)
        comma = "," if parent.members else ""
        return Slot(self.places.byte(parent.inside), 0, f'"{name}":{before}', after + comma)

    def remove(self, name: str) -> Slot | None:
        """Member `name` of the body with the comma that goes with it; None where there is none."""
        names = list(self.whole.members)
        if name not in names:
            return None
        at = names.index(name)
        member = self.whole.members[name]
        if at:  # from the end of the member before, so that its own edits stay apart from this one
            first, last = self.whole.members[names[at - 1]].end, member.end
        elif len(names) > 1:
            first, last = member.name, self.whole.members[names[1]].name
        else:
            first, last = member.name, member.end
        start = self.places.byte(first)
        return Slot(start, self.places.byte(last) - start, "", "")

    def native_cap(self) -> tuple[int | None, tuple[Slot, ...]]:
        """`options.num_predict`: what the client set, and where the cap goes if it set nothing."""
        options = self.whole.get("options")
        if not isinstance(options, Object):
            return None, (self.put(self.whole, "options", '{"num_predict":', "}"),)
        asked = options.get("num_predict")
        if isinstance(asked, float):
            if not asked.is_integer():
                raise NotAcceptable("options.num_predict is to be a whole number")
            asked = int(asked)
        if isinstance(asked, int) and asked > 0:
            return _bounded(asked, "options.num_predict"), ()
        return None, (self.put(options, "num_predict"),)

    def openai_cap(self) -> tuple[int | None, tuple[Slot, ...]]:
        """`max_tokens` or its newer name: what the client set, and the places that do not say so yet."""
        present = {name: self.whole.members[name] for name in _CAPS if name in self.whole.members}
        asked = {
            _bounded(member.value, name)
            for name, member in present.items()
            if isinstance(member.value, int) and member.value > 0
        }
        if len(asked) > 1:
            raise NotAcceptable("max_tokens and max_completion_tokens are not the same")
        value = asked.pop() if asked else None
        if not present:
            return None, (self.put(self.whole, "max_tokens"),)
        if "max_tokens" not in present:
            newer = present["max_completion_tokens"]
            return value, (self.replace(newer._replace(start=newer.name), '"max_tokens":'),)
        return value, tuple(self.replace(member) for member in present.values() if not value or member.value != value)

    def usage(self) -> tuple[bool, Slot | None]:
        """Whether the client asked for usage in its stream, and where to ask for it on the gateway's behalf."""
        options = self.whole.get("stream_options")
        if not isinstance(options, Object):
            return False, self.put(self.whole, "stream_options", '{"include_usage":', "}")
        if options.get("include_usage") is True:
            return True, None
        return False, self.put(options, "include_usage")


def _bounded(value: int, name: str) -> int:
    if value >= _MAX_COUNT:
        raise NotAcceptable(f"{name} is too large")
    return value
