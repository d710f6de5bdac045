"""Rates, concurrency and failures of calls of models, for a whole worker process.

Every call passes the gate of its connection. It waits in a **lane**, one for each (model, tenant), and within it behind the other calls
of its own key; lanes take turns, and so do the keys of a lane, so neither a busy key nor a slow model starves another. Limits are
windows of the last minute: what was admitted within it never exceeds them. Tokens are reserved by an estimate, and settled when the
call has ended. A call that waits for a window that other lanes use too holds the place for itself: smaller calls of other lanes do not
slip past it for ever. A provider that says when to come back (429, Retry-After) closes the lane until then; a connection that fails
again and again is a **circuit** that opens: all of its lanes wait, then one call tries.

Rejected: a token bucket (it lets twice the limit pass within a minute); failing calls that find the gate closed (waiting is
backpressure: the runs are in flight, and their number pauses the source).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

from agentflow.api.budgets import RateLimit
from agentflow.api.resources import Resource

_WINDOW_S: Final = 60.0
_LEAST_S: Final = 0.001
_LANES_MAX: Final = 4096  # above it, lanes that limit nothing are forgotten

_Call = tuple["asyncio.Future[Admission | None]", float, bool]
"""A call that waits: who, how many tokens, and whether it can go elsewhere."""

_LaneName = tuple[str, str, tuple[RateLimit, ...]]
"""Model, tenant, and limits: setups of one model may have limits of their own."""


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
        self.expire(now)
        entries = self.entries
        excess = self.used + min(amount, self.limit) - self.limit
        if excess <= 0:
            return 0.0
        freed = 0.0
        for when, entry in entries:
            freed += entry
            if freed >= excess:
                # It is not a minute ago, even where the sum is rounded to now.
                return max(when + _WINDOW_S - now, _LEAST_S)
        return _WINDOW_S

    def expire(self, now: float) -> None:
        """Forget what is a minute ago."""
        entries = self.entries
        while entries and entries[0][0] <= now - _WINDOW_S:
            self.used -= entries.popleft()[1]
        if not entries:
            self.used = 0.0

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

    __slots__ = ("active", "concurrency", "is_shared", "requests", "tokens")

    def __init__(self, limit: RateLimit) -> None:
        self.is_shared = limit.per == "connection"
        self.concurrency = limit.concurrency
        self.active = 0
        self.requests = None if limit.requests_per_minute is None else Window(limit.requests_per_minute)
        self.tokens = None if limit.tokens_per_minute is None else Window(limit.tokens_per_minute)

    def is_idle(self, now: float) -> bool:
        """Whether it limits nothing now."""
        for window in (self.requests, self.tokens):
            if window is not None:
                window.expire(now)
                if window.entries:
                    return False
        return not self.active

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

    __slots__ = ("active", "closed_until", "name", "scopes", "waiting")

    def __init__(self, name: _LaneName, scopes: Sequence[Scope]) -> None:
        self.name = name
        self.scopes = scopes
        self.active = 0
        self.closed_until = 0.0
        self.waiting: OrderedDict[str, deque[_Call]] = OrderedDict()

    def push(self, key: str, call: _Call) -> None:
        """Put a call behind the others of its key."""
        self.waiting.setdefault(key, deque()).append(call)

    def give_up(self, key: str, waiter: asyncio.Future[Admission | None]) -> None:
        """Take a call away that does not want to wait any more."""
        rest = deque(call for call in self.waiting.get(key, ()) if call[0] is not waiter)
        if rest:
            self.waiting[key] = rest
        else:
            self.waiting.pop(key, None)

    def is_idle(self, now: float) -> bool:
        """Whether nobody waits, no call is on its way, and it is not closed."""
        return not (self.waiting or self.active or self.closed_until > now)

    def head(self) -> _Call | None:
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
        self._lanes: dict[_LaneName, Lane] = {}
        self._lanes_max = _LANES_MAX
        self._busy: OrderedDict[_LaneName, Lane] = OrderedDict()  # where somebody waits, the next turn first
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

    def closed_s(self, model: str, tenant: str, limits: Sequence[RateLimit]) -> float:
        """Return how long a lane stays closed because the provider has said so; 0: it is open."""
        lane = self._lanes.get((model, tenant, tuple(limits)))
        return 0.0 if lane is None else max(0.0, lane.closed_until - self._loop.time())

    async def enter(
        self,
        model: str,
        tenant: str,
        key: str,
        limits: Sequence[RateLimit],
        tokens: float,
        *,
        can_go_elsewhere: bool = False,
    ) -> Admission | None:
        """Return when the call may be made; whoever gets it has to `leave`.

        Args:
            model: Name of the model.
            tenant: Whose limits count.
            key: Keys take turns.
            limits: Of the model.
            tokens: What the call is taken to use.
            can_go_elsewhere: Return None when the circuit opens, or the provider closes the lane, meanwhile.
        """
        lane = self._lane(model, tenant, limits)
        if not self.waiting and self._wait_s(lane, tokens) == 0.0:
            return self._admit(lane, tokens)
        waiter: asyncio.Future[Admission | None] = self._loop.create_future()
        lane.push(key, (waiter, tokens, can_go_elsewhere))
        self._busy.setdefault(lane.name, lane)
        began = self._loop.time()
        self.waiting += 1
        self._open_lanes()
        try:
            admission = await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                lane.give_up(key, waiter)
                self.waiting -= 1
                self._open_lanes()  # it may have held a place
            elif (passed := waiter.result()) is not None:  # it was let through a moment ago
                self.leave(passed, tokens=0.0)
            raise
        if admission is not None:
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
        admission.lane.active -= 1
        for scope in admission.lane.scopes:
            scope.active -= 1
        for window, entry in admission.reserved:
            window.settle(entry, tokens)
        if closed_s:
            admission.lane.closed_until = max(admission.lane.closed_until, now + closed_s)
            self._turn_away([admission.lane])
        if admission.is_probe:
            self._is_probing = False
        if is_answered:
            self._failures = 0
        elif is_failed:
            self._failures += 1
            if self.is_open_circuit:
                self._open_until = now + self._open_s
                self._turn_away(self._busy.values())
        self._open_lanes()

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn_away(self, lanes: Iterable[Lane]) -> None:
        """Let those go who can ask another model, instead of waiting for this provider."""
        for lane in lanes:
            for calls in lane.waiting.values():
                for waiter, _, can_go_elsewhere in calls:
                    if can_go_elsewhere and not waiter.done():
                        waiter.set_result(None)
                        self.waiting -= 1

    def _lane(self, model: str, tenant: str, limits: Sequence[RateLimit]) -> Lane:
        name = (model, tenant, tuple(limits))
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= self._lanes_max:
                self._forget_idle()
            scopes = [self._scope(limit, model, tenant) for limit in limits]
            lane = self._lanes[name] = Lane(name, scopes)
        return lane

    def _forget_idle(self) -> None:
        """Forget lanes and scopes that limit nothing now: tenants come and go."""
        now = self._loop.time()
        self._lanes = {name: lane for name, lane in self._lanes.items() if not lane.is_idle(now)}
        kept = {id(scope) for lane in self._lanes.values() for scope in lane.scopes}
        self._scopes = {
            key: scope for key, scope in self._scopes.items() if id(scope) in kept or not scope.is_idle(now)
        }
        self._lanes_max = max(_LANES_MAX, 2 * len(self._lanes))

    def _scope(self, limit: RateLimit, model: str, tenant: str) -> Scope:
        names = {"connection": ("", ""), "model": (model, ""), "tenant": (model, tenant)}[limit.per]
        key = (limit.per, *names, limit)
        if key not in self._scopes:
            self._scopes[key] = Scope(limit)
        return self._scopes[key]

    def _wait_s(self, lane: Lane, tokens: float, held: set[Scope] | None = None) -> float | None:
        """Return how long the head of a lane waits for time; 0: it may pass, None: it waits for the end of another call.

        Args:
            lane: The lane.
            tokens: Of its head.
            held: Scopes whose place is held for another lane's head; where this one waits for nothing but time in scopes that
                other lanes use too, it holds them.
        """
        now = self._loop.time()
        own_s, shared_s = max(0.0, lane.closed_until - now), 0.0
        if self.is_open_circuit:
            if self._is_probing:
                return None
            own_s = max(own_s, self._open_until - now)
        holds = []
        for scope in lane.scopes:
            if held and scope in held:
                return None
            of_scope = scope.wait_s(tokens, now)
            if of_scope is None:
                return None
            if of_scope > 0.0 and scope.is_shared:
                shared_s = max(shared_s, of_scope)
                holds.append(scope)
            else:
                own_s = max(own_s, of_scope)
        if held is not None and own_s == 0.0:
            held.update(holds)
        return max(own_s, shared_s)

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
        lane.active += 1
        is_probe = self.is_open_circuit
        self._is_probing = self._is_probing or is_probe
        return Admission(lane, reserved, is_probe=is_probe)

    def _open_lanes(self) -> None:
        """Let pass what may, one call of each lane after the other, and look again when time has made room."""
        next_s: float | None = None
        was_admitted = bool(self.waiting)
        while was_admitted:
            was_admitted, next_s = False, None
            held: set[Scope] = set()
            for name, lane in list(self._busy.items()):
                head = lane.head()
                if head is None:
                    del self._busy[name]
                    continue
                wait = self._wait_s(lane, head[1], held)
                if wait == 0.0:
                    was_admitted = True
                    lane.pop()
                    self._busy.move_to_end(name)
                    self.waiting -= 1
                    head[0].set_result(self._admit(lane, head[1]))
                elif wait is not None:
                    next_s = wait if next_s is None else min(next_s, wait)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_s is not None:
            self._timer = self._loop.call_later(next_s + 0.001, self._open_lanes)


class Traffic:
    """The gates of a process, by connection."""

    def __init__(self) -> None:
        self.gates: dict[Resource, Gate] = {}

    def gate(self, connection: Resource, failures_max: int, open_s: float) -> Gate:
        """Return the gate of a connection; connections of the same name in two agents have one each."""
        gate = self.gates.get(connection)
        if gate is None:
            gate = self.gates[connection] = Gate(failures_max, open_s)
        return gate

    def close(self) -> None:
        """Forget all timers."""
        for gate in self.gates.values():
            gate.close()
        self.gates.clear()
