"""Labels of metrics, kept few: a time series costs memory for ever, in us and in Prometheus.

Tenants, models and whatever else operators and clients name are open sets. Of an open label at most `most` values are
told apart, first come first served for the life of the process; all others share the value "other". Sums stay right.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Child = TypeVar("Child")
P = ParamSpec("P")

OTHER = "other"
_KEPT_MAX = 10_000  # remembered combinations; past them a look-up only takes longer


log = logging.getLogger(__name__)


class Labels(Generic[Child]):
    """The children of one metric by their label values, bound once: a look-up is one dict access.

    `bind` makes a child from label values (a metric's `labels`); `most` says for each label, in order, how many values
    are told apart, None for a label whose values are closed by the code that sets them.
    """

    def __init__(self, bind: Callable[..., Child], *most: int | None) -> None:
        self._bind = bind
        self._most = most
        self._told_apart: tuple[set[str], ...] = tuple(set() for _ in most)
        self._children: dict[tuple[str, ...], Child] = {}

    def __call__(self, *values: str) -> Child:
        child = self._children.get(values)
        if child is None:
            bound = (self._bounded(*each) for each in zip(values, self._most, self._told_apart, strict=True))
            child = self._bind(*bound)
            if len(self._children) < _KEPT_MAX:
                self._children[values] = child
        return child

    @staticmethod
    def _bounded(value: str, most: int | None, told_apart: set[str]) -> str:
        if most is None or value in told_apart:
            return value
        if len(told_apart) >= most:
            return OTHER
        told_apart.add(value)
        return value


class Metric(Protocol):
    """A metric class of prometheus-client, as far as it matters here."""

    def labels(self, *values: str) -> Self: ...


AMetric = TypeVar("AMetric", bound=Metric)


def labelled(
    make: Callable[..., AMetric], name: str, text: str, most: Mapping[str, int | None], **more: object
) -> Labels[AMetric]:
    """A metric of the class `make` (prometheus-client's Counter, Gauge, Histogram) behind `Labels`; `most` as there."""
    metric = make(name, text, tuple(most), **more)
    return Labels(metric.labels if most else lambda: metric, *most.values())


class Counts(Protocol):
    """A counter."""

    def inc(self) -> None: ...


class Faults:
    """Failed updates of one service's metrics: counted, and logged once, since a full disk would repeat itself."""

    def __init__(self, counter: Counts) -> None:
        self._counter = counter
        self._logged = False

    def note(self, error: Exception) -> None:
        """Count and never raise."""
        if not self._logged:
            self._logged = True
            log.warning("metric_fault", extra={"fault": repr(error)})
        with contextlib.suppress(Exception):  # nothing is left to count with
            self._counter.inc()


class HasFaults(Protocol):
    """An object whose methods `fails_open` guards."""

    @property
    def faults(self) -> Faults: ...


Guarded = TypeVar("Guarded", bound=HasFaults)


def fails_open(method: Callable[Concatenate[Guarded, P], None]) -> Callable[Concatenate[Guarded, P], None]:
    """A metric that cannot be written is noted in `faults` and otherwise nobody's concern: no request fails for it."""

    @functools.wraps(method)
    def guarded(self: Guarded, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # the very point
            self.faults.note(error)

    return cast("Callable[Concatenate[Guarded, P], None]", guarded)  # wraps() names `self` in its type
