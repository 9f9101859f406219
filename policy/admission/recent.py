"""What was used most recently, of a bounded number."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
T = TypeVar("T")


class Recent(Generic[K, T]):
    """Items by name; of more than `largest` the one longest out of use goes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._items: OrderedDict[K, T] = OrderedDict()

    def __contains__(self, name: K) -> bool:
        return name in self._items

    def get(self, name: K) -> T | None:
        item = self._items.get(name)
        if item is not None:
            self._items.move_to_end(name)
        return item

    def put(self, name: K, item: T) -> None:
        self._items[name] = item
        self._items.move_to_end(name)
        if len(self._items) > self._largest:
            self._items.popitem(last=False)

    def drop(self, name: K) -> None:
        self._items.pop(name, None)

    def drop_where(self, matches: Callable[[T], bool]) -> None:
        for name in [name for name, item in self._items.items() if matches(item)]:
            del self._items[name]

    def clear(self) -> None:
        self._items.clear()
