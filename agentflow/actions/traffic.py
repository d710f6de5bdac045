"""Rates, concurrency and failures of calls of models, for a whole worker process.

Every call passes the gate of its connection. It waits in a **lane**, one for each (model, tenant), and within it behind the other calls
of its own key; lanes take turns, and so do the keys of a lane, so neither a busy key nor a slow model starves another. Limits are
windows of the last minute: what was admitted within it never exceeds them. Tokens are reserved by an estimate, and settled when the
call has ended. A provider that says when to come back (429, Retry-After) closes the lane until then; a connection that fails again and
again is a **circuit** that opens: all of its lanes wait, then one call tries.

Rejected: a token bucket (it lets twice the limit pass within a minute); failing calls that find the gate closed (waiting is
backpressure: the runs are in flight, and their number pauses the source).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from agentflow.api.budgets import RateLimit

_WINDOW_S: Final = 60.0
_LANES_MAX: Final = 4096  # above it, lanes that limit nothing are forgotten


class Window:
    """One limit of the last minute: how much was admitted, and when.

    Attributes:
        limit: Most within a minute.
        used: How much was within the last one.
    """

    __slots__ = ("entries", "limit", "used")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0.0
        self.entries: deque[list[float]] = deque()  # [when, how much], oldest first

    def wait_s(self, amount: float, now: float) -> float:
        """Return how long until ``amount`` fits; 0: now. More than the whole limit fits when nothing else is in the window."""
        entries = self.entries
        while entries and entries[0][0] <= now - _WINDOW_S:
            self.used -= entries.popleft()[1]
        if not entries:
            self.used = 0.0
        excess = self.used + min(amount, self.limit) - self.limit
        if excess <= 0:
            return 0.0
        freed = 0.0
        for when, entry in entries:
            freed += entry
            if freed >= excess:
                return when + _WINDOW_S - now
        return _WINDOW_S

    def add(self, amount: float, now: float) -> list[float]:
        """Admit; returns the entry, for `settle`."""
        entry = [now, amount]
        self.entries.append(entry)
        self.used += amount
        return entry

    def settle(self, entry: list[float], amount: float) -> None:
        """Set what an admitted call has really used."""
        if self.entries and self.entries[0][0] <= entry[0]:  # it is within the window still
            self.used += amount - entry[1]
        entry[1] = amount


class Scope:
    """What one `RateLimit` limits: all calls of a connection, of a model, or of a tenant."""

    __slots__ = ("active", "concurrency", "requests", "tokens")

    def __init__(self, limit: RateLimit) -> None:
        self.concurrency = limit.concurrency
        self.active = 0
        self.requests = None if limit.requests_per_minute is None else Window(limit.requests_per_minute)
        self.tokens = None if limit.tokens_per_minute is None else Window(limit.tokens_per_minute)

    def wait_s(self, tokens: float, now: float) -> float | None:
        """Return how long a call waits for time; None: for the end of another call."""
        if self.concurrency is not None and self.active >= self.concurrency:
            return None
        wait = 0.0 if self.requests is None else self.requests.wait_s(1, now)
        return wait if self.tokens is None else max(wait, self.tokens.wait_s(tokens, now))


class Admission:
    """A call that was let through; ended exactly once by `Gate.leave`."""

    __slots__ = ("is_probe", "lane", "reserved", "waited_s")

    def __init__(self, lane: Lane, reserved: list[tuple[Window, list[float]]], *, is_probe: bool) -> None:
        self.lane = lane
        self.reserved = reserved
        self.is_probe = is_probe
        self.waited_s = 0.0


class Lane:
    """The calls of one model and tenant that wait at a gate, by key; keys take turns."""

    __slots__ = ("closed_until", "name", "scopes", "waiting")

    def __init__(self, name: tuple[str, str], scopes: Sequence[Scope]) -> None:
        self.name = name
        self.scopes = scopes
        self.closed_until = 0.0
        self.waiting: OrderedDict[str, deque[tuple[asyncio.Future[Admission], float]]] = OrderedDict()

    def push(self, key: str, waiter: asyncio.Future[Admission], tokens: float) -> None:
        """Put a call behind the others of its key."""
        self.waiting.setdefault(key, deque()).append((waiter, tokens))

    @property
    def is_used(self) -> bool:
        """Whether calls are on their way, or were within the last minute."""
        return any(
            scope.active or any(window is not None and window.entries for window in (scope.requests, scope.tokens))
            for scope in self.scopes
        )

    def head(self) -> tuple[asyncio.Future[Admission], float] | None:
        """Return the call whose turn it is; those that were given up are dropped. None: nobody waits."""
        while self.waiting:
            key, calls = next(iter(self.waiting.items()))
            while calls and calls[0][0].done():
                calls.popleft()
            if calls:
                return calls[0]
            del self.waiting[key]
        return None

    def pop(self) -> None:
        """Take the head away; its key goes behind the others."""
        key, calls = next(iter(self.waiting.items()))
        calls.popleft()
        if calls:
            self.waiting.move_to_end(key)
        else:
            del self.waiting[key]


class Gate:
    """Where the calls of one connection pass.

    Args:
        failures_max: Failures in a row that open the circuit.
        open_s: How long it is open.
    """

    def __init__(self, failures_max: int, open_s: float) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._failures = 0
        self._open_until = 0.0
        self._is_probing = False
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._busy: OrderedDict[tuple[str, str], Lane] = OrderedDict()  # where somebody waits
        self._scopes: dict[tuple[str, str, str, RateLimit], Scope] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.active = 0
        self.waiting = 0

    @property
    def is_open_circuit(self) -> bool:
        """Whether the connection has failed so often that calls are kept from it."""
        return self._failures >= self._failures_max

    def retry_after_s(self) -> float:
        """Return how long the circuit stays open; 0: it is closed, or one may try."""
        if not self.is_open_circuit or self._is_probing:
            return self._open_s if self.is_open_circuit else 0.0
        return max(0.0, self._open_until - self._loop.time())

    async def enter(self, model: str, tenant: str, key: str, limits: Sequence[RateLimit], tokens: float) -> Admission:
        """Return when the call may be made; whoever gets it has to `leave`."""
        lane = self._lane(model, tenant, limits)
        if not lane.waiting and self._wait_s(lane, tokens) == 0.0:
            return self._admit(lane, tokens)
        waiter: asyncio.Future[Admission] = self._loop.create_future()
        lane.push(key, waiter, tokens)
        self._busy.setdefault(lane.name, lane)
        began = self._loop.time()
        self.waiting += 1
        self._open_lanes()
        try:
            admission = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it was let through a moment ago
                self.leave(waiter.result(), tokens=0.0)
            raise
        finally:
            self.waiting -= 1
        admission.waited_s = self._loop.time() - began
        return admission

    def leave(
        self,
        admission: Admission,
        *,
        tokens: float,
        is_failed: bool = False,
        is_answered: bool = False,
        closed_s: float | None = None,
    ) -> None:
        """End a call.

        Args:
            admission: From `enter`.
            tokens: What it has used.
            is_failed: The connection did not answer, or said that it cannot.
            is_answered: The connection works.
            closed_s: The provider says to wait so long; None: it does not.
        """
        now = self._loop.time()
        self.active -= 1
        for scope in admission.lane.scopes:
            scope.active -= 1
        for window, entry in admission.reserved:
            window.settle(entry, tokens)
        if closed_s is not None:
            admission.lane.closed_until = max(admission.lane.closed_until, now + closed_s)
        if admission.is_probe:
            self._is_probing = False
        if is_answered:
            self._failures = 0
        elif is_failed:
            self._failures += 1
            if self.is_open_circuit:
                self._open_until = now + self._open_s
        self._open_lanes()

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _lane(self, model: str, tenant: str, limits: Sequence[RateLimit]) -> Lane:
        lane = self._lanes.get((model, tenant))
        if lane is None:
            if len(self._lanes) >= _LANES_MAX:
                self._forget_idle()
            scopes = [self._scope(limit, model, tenant) for limit in limits]
            lane = self._lanes[model, tenant] = Lane((model, tenant), scopes)
        return lane

    def _forget_idle(self) -> None:
        """Forget lanes and scopes that limit nothing now: tenants come and go."""
        now = self._loop.time()
        self._lanes = {
            name: lane for name, lane in self._lanes.items() if lane.waiting or lane.closed_until > now or lane.is_used
        }
        kept = {id(scope) for lane in self._lanes.values() for scope in lane.scopes}
        self._scopes = {key: scope for key, scope in self._scopes.items() if id(scope) in kept}

    def _scope(self, limit: RateLimit, model: str, tenant: str) -> Scope:
        names = {"connection": ("", ""), "model": (model, ""), "tenant": (model, tenant)}[limit.per]
        key = (limit.per, *names, limit)
        if key not in self._scopes:
            self._scopes[key] = Scope(limit)
        return self._scopes[key]

    def _wait_s(self, lane: Lane, tokens: float) -> float | None:
        """Return how long the head of a lane waits for time; 0: it may pass, None: it waits for the end of another call."""
        now = self._loop.time()
        wait = max(0.0, lane.closed_until - now)
        if self.is_open_circuit:
            if self._is_probing:
                return None
            wait = max(wait, self._open_until - now)
        for scope in lane.scopes:
            of_scope = scope.wait_s(tokens, now)
            if of_scope is None:
                return None
            wait = max(wait, of_scope)
        return wait

    def _admit(self, lane: Lane, tokens: float) -> Admission:
        now = self._loop.time()
        reserved = []
        for scope in lane.scopes:
            scope.active += 1
            if scope.requests is not None:
                scope.requests.add(1, now)
            if scope.tokens is not None:
                reserved.append((scope.tokens, scope.tokens.add(tokens, now)))
        self.active += 1
        is_probe = self.is_open_circuit
        self._is_probing = self._is_probing or is_probe
        return Admission(lane, reserved, is_probe=is_probe)

    def _open_lanes(self) -> None:
        """Let pass what may, lane by lane, and look again when time has made room."""
        if not self.waiting:
            return
        next_s: float | None = None
        blocked = 0
        while blocked < len(self._busy):
            name, lane = next(iter(self._busy.items()))
            head = lane.head()
            if head is None:
                del self._busy[name]
                continue
            self._busy.move_to_end(name)
            wait = self._wait_s(lane, head[1])
            if wait == 0.0:
                lane.pop()
                head[0].set_result(self._admit(lane, head[1]))
                blocked = 0
                continue
            blocked += 1
            if wait is not None:
                next_s = wait if next_s is None else min(next_s, wait)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_s is not None:
            self._timer = self._loop.call_later(next_s + 0.001, self._open_lanes)


class Traffic:
    """The gates of a process, by connection."""

    def __init__(self) -> None:
        self.gates: dict[str, Gate] = {}

    def gate(self, connection: str, failures_max: int, open_s: float) -> Gate:
        """Return the gate of a connection."""
        gate = self.gates.get(connection)
        if gate is None:
            gate = self.gates[connection] = Gate(failures_max, open_s)
        return gate

    def close(self) -> None:
        """Forget all timers."""
        for gate in self.gates.values():
            gate.close()
        self.gates.clear()
