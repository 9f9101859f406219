"""Turns: a bounded queue in which a crowd cannot keep an individual waiting.

What waits stands at the end of a path of lanes, such as ("unknown", "192.0.2.7"). At every level of the path the lanes
take turns, however many wait in each: one item of a lane passes, then one of each other lane. Within the last lane the
first to come goes first.

The bound holds for each lane of the first level by itself, so that a crowd fills its own room only. When a room is full
the longest of its lanes gives up its latest; a newcomer who would make a lane as long as that is turned away instead.

This is the round robin of RFC 970 (Nagle), nested, counted in items instead of bytes: all our items cost the same.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")
Path = tuple["Hashable", ...]


class Turns(Generic[T]):
    """Items by path, taken fairly. Paths that share a first lane have the same length."""

    def __init__(self, room: int) -> None:
        self._room = room  # how many may wait under one lane of the first level
        self._lanes: dict[Hashable, _Lane[T]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(lane.waiting for lane in self._lanes.values())

    def put(self, path: Path, item: T) -> T | None:
        """Queue `item`; the item that had to give way, which may be `item` itself, or None."""
        first, rest = path[0], path[1:]
        lane = self._lanes.setdefault(first, _Lane())
        gone: T | None = None
        if lane.waiting >= self._room:
            if lane.depth(rest) + 1 >= lane.longest():
                return item
            gone = lane.drop_latest_of_longest()
        lane.put(rest, item)
        return gone

    def take(self) -> T:
        """The item whose turn it is; IndexError when none waits."""
        if not self._lanes:
            raise IndexError("nobody waits")
        return _take_turn(self._lanes)


class _Lane(Generic[T]):
    """Either the end of a path, a plain queue, or lanes that take turns."""

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

    def depth(self, path: Path) -> int:
        """How many wait at the very end of `path`."""
        if not path:
            return len(self._queue)
        lane = self._lanes.get(path[0])
        return 0 if lane is None else lane.depth(path[1:])

    def longest(self) -> int:
        """How many wait in the fullest queue under here."""
        return max((lane.longest() for lane in self._lanes.values()), default=len(self._queue))

    def drop_latest_of_longest(self) -> T:
        self.waiting -= 1
        if not self._lanes:
            return self._queue.pop()
        name, lane = max(self._lanes.items(), key=lambda item: item[1].longest())
        item = lane.drop_latest_of_longest()
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
