"""Turns: a bounded queue in which a crowd cannot keep an individual waiting.

What waits stands at the end of a path of lanes, such as ("unknown", "192.0.2.7"). At every level of the path the lanes
take turns, however many wait in each: one item of a lane passes, then one of each other lane. Within the last lane the
first to come goes first. This is the round robin of RFC 970 (Nagle), nested; all our items cost the same.

Each lane of the first level has room of its own, so that a crowd fills its own and no other. In a full one the fullest
lane gives up its latest item for a newcomer of an emptier one; who comes to the fullest is turned away.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

T = TypeVar("T")
Path = tuple["Hashable", ...]


class Turns(Generic[T]):
    """Items by path, taken fairly. `rooms` says how many may wait under each lane of the first level."""

    def __init__(self, rooms: Mapping[str, int]) -> None:
        self._rooms = rooms
        self._lanes: dict[Hashable, _Lane[T]] = {}  # in the order of their turns; none is empty

    def __len__(self) -> int:
        return sum(lane.waiting for lane in self._lanes.values())

    def put(self, lane: str, path: Path, item: T) -> T | None:
        """Queue `item`; the item that had to give way, which may be `item` itself, or None."""
        first = self._lanes.get(lane)
        gone: T | None = None
        if first is not None and first.waiting >= self._rooms[lane]:
            gone = first.make_room(path, item)
            if gone is item:
                return gone
        # Looked up anew: the lane may have been emptied to make room.
        self._lanes.setdefault(lane, _Lane()).put(path, item)
        return gone

    def take(self) -> T:
        """The item whose turn it is; IndexError when none waits."""
        if not self._lanes:
            raise IndexError("nobody waits")
        return _take_turn(self._lanes)


class _Lane(Generic[T]):
    """Either the end of a path, a plain queue, or lanes that take turns, none of them empty."""

    def __init__(self) -> None:
        self.waiting = 0
        self._queue: deque[T] = deque()
        self._lanes: dict[Hashable, _Lane[T]] = {}

    def put(self, path: Path, item: T) -> None:
        self.waiting += 1
        if path:
            self._lanes.setdefault(path[0], _Lane()).put(path[1:], item)
        else:
            self._queue.append(item)

    def take(self) -> T:
        self.waiting -= 1
        return _take_turn(self._lanes) if self._lanes else self._queue.popleft()

    def make_room(self, path: Path, item: T) -> T:
        """Drop one item, or turn `item` away: what goes is returned."""
        own = self._lanes.get(path[0]) if path else None
        waiting = own.waiting if own else 0
        fullest = max((lane.waiting for lane in self._lanes.values()), default=0)
        if waiting + 1 < fullest:
            return self._drop()
        if own is None:
            return item
        gone = own.make_room(path[1:], item)  # it competes with its own kind
        if gone is not item:
            self.waiting -= 1
        return gone

    def _drop(self) -> T:
        """The latest of the fullest lane, and of the fullest within that."""
        self.waiting -= 1
        if not self._lanes:
            return self._queue.pop()
        name, lane = max(reversed(self._lanes.items()), key=lambda item: item[1].waiting)  # of equals the latest
        item = lane._drop()
        if not lane.waiting:
            del self._lanes[name]
        return item


def _take_turn(lanes: dict[Hashable, _Lane[T]]) -> T:
    name = next(iter(lanes))
    lane = lanes.pop(name)
    item = lane.take()
    if lane.waiting:
        lanes[name] = lane  # to the end: a dict keeps the order of insertion
    return item
