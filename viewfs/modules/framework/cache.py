"""Bounded caches for values that are expensive to make. Several threads may use one at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Cache", "SingleFlightCache"]

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The most recently used values, whose weights add up to at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._free = limit
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, weight: int = 1) -> V:
        """Keep `value` and hand it back."""
        with self._lock:
            old = self._values.pop(key, None)
            if old is not None:
                self._free += old[1]
            self._values[key] = value, weight
            self._free -= weight
            while self._free < 0:
                self._free += self._values.popitem(last=False)[1][1]
        return value


class _Flight:
    """A value that one thread is making and others wait for."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.error: OSError | None = None


class SingleFlightCache(Cache[K, V]):
    """A `Cache` that knows how to make its values, and makes each once, however many threads ask for it meanwhile.

    `make` runs outside the lock, so that values of different keys are made at the same time. Its OSError is raised for
    all who asked, and is not kept. `weigh` gives the weight of a value.
    """

    def __init__(self, limit: int, make: Callable[[K], V], weigh: Callable[[V], int]) -> None:
        super().__init__(limit)
        self._make = make
        self._weigh = weigh
        self._flights: dict[K, _Flight] = {}
        #: How often a value was there, or being made, when it was asked for; and how often it had to be made.
        self.hits = 0
        self.misses = 0

    def get(self, key: K) -> V:
        """Raises the OSError of `make`."""
        while True:
            with self._lock:
                found = self._values.get(key)
                if found is not None:
                    self._values.move_to_end(key)
                    self.hits += 1
                    return found[0]
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = _Flight()
                    self.misses += 1
                    break
            flight.landed.wait()
            if flight.error is not None:
                raise flight.error
        try:
            value = self._make(key)
            return self.put(key, value, self._weigh(value))
        except OSError as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.landed.set()
