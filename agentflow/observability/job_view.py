"""What a job does, from the metrics of its processes: what `agentflow top` shows.

Rates and percentiles are those between two scrapes. A counter that fell belongs to a process that began again: what it shows came
since then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from agentflow.observability import names
from agentflow.observability.names import MetricName
from agentflow.observability.scrape import Labels, Scrape


class SubtaskView(msgspec.Struct, rename="kebab"):
    """One subtask. Times in seconds, sizes in bytes; null: not known."""

    subtask: int
    process: str
    in_flight: int
    pending: int
    parked: int
    sleeping: int
    mailbox: int
    is_paused: bool
    checkpoint: int
    checkpoint_age_s: float | None
    checkpoint_duration_s: float | None
    checkpoint_bytes: int
    state_bytes: int


class CallView(msgspec.Struct, rename="kebab"):
    """One action, or one step: what its attempts or calls did between the scrapes.

    Attributes:
        agent: Its agent.
        name: Name of the action, or function of the step.
        per_s: Attempts or calls that ended, per second.
        p50_s: Median of their durations; null: there was none.
        p99_s: 99th percentile.
        failures: Those that failed, since the processes began.
        retries: Those that another one followed.
        total: All.
    """

    agent: str
    name: str
    per_s: float
    p50_s: float | None
    p99_s: float | None
    failures: int
    retries: int
    total: int


class ModelsView(msgspec.Struct, rename="kebab"):
    """Calls of models.

    Attributes:
        calls_per_s: Calls that ended, per second.
        tokens_per_s: Tokens of prompts and answers per second.
        cost: What they have cost since the processes began, by the price table.
        active: Calls that are on their way.
        waiting: Calls that wait for limits of rates.
        saved: Calls that the journal answered.
    """

    calls_per_s: float
    tokens_per_s: float
    cost: float
    active: int
    waiting: int
    saved: int


class JobView(msgspec.Struct, rename="kebab"):
    """A job, as its processes say.

    Attributes:
        job: Its name; several names where the addresses are of several jobs.
        processes: Addresses of those that answered.
        in_per_s: Records read per second.
        out_per_s: Outputs per second.
        records_in: Records read since the processes began.
        records_out: Outputs.
        dead_letters: Records that went to the dead-letter sink.
        restarts: Restarts of subtasks.
        lag: Records of the input topics that are not read yet; null: the source does not say.
        in_flight: Unfinished runs.
        loop_lag_s: The latest event loop.
        models: What calls of models do; null: there were none.
        subtasks: In the order of their numbers.
        actions: Slowest first, by their 99th percentile.
        steps: Likewise.
        resources_failed: Names of resources that could not be opened.
        circuits_open: Connections that calls are kept from, because they have failed.
    """

    job: str
    processes: list[str]
    in_per_s: float
    out_per_s: float
    records_in: int
    records_out: int
    dead_letters: int
    restarts: int
    lag: int | None
    in_flight: int
    loop_lag_s: float
    subtasks: list[SubtaskView]
    actions: list[CallView]
    steps: list[CallView]
    models: ModelsView | None = None
    resources_failed: list[str] = []
    circuits_open: list[str] = []


Change = tuple[Scrape | None, Scrape]
"""The scrape before and the newest one of a process; None: there was none before."""


def view_of(changes: Mapping[str, Change]) -> JobView:
    """Return what the processes at these addresses say. Without a scrape before, rates and percentiles are of none."""
    newest = [scrape for _, scrape in changes.values()]
    lags = [value for scrape in newest for _, value in scrape.values(names.LAG)]
    subtasks = [row for address, (_, scrape) in changes.items() for row in _subtasks(address, scrape)]
    return JobView(
        job=", ".join(sorted({labels["job"] for one in newest for labels, _ in one.values(names.RECORDS_IN)})),
        processes=list(changes),
        in_per_s=sum(_rate(change, names.RECORDS_IN) for change in changes.values()),
        out_per_s=sum(_rate(change, names.RECORDS_OUT) for change in changes.values()),
        records_in=_sum(newest, names.RECORDS_IN),
        records_out=_sum(newest, names.RECORDS_OUT),
        dead_letters=_sum(newest, names.DEAD_LETTERS),
        restarts=_sum(newest, names.RESTARTS),
        lag=int(sum(lags)) if lags else None,
        in_flight=_sum(newest, names.RUNS_IN_FLIGHT),
        loop_lag_s=max((value for one in newest for _, value in one.values(names.LOOP_LAG)), default=0.0),
        subtasks=sorted(subtasks, key=lambda row: (row.subtask, row.process)),
        actions=_calls(changes.values(), "action", names.ACTION_DURATION, names.ACTION_FAILURES, names.ACTION_RETRIES),
        steps=_calls(changes.values(), "step", names.STEP_DURATION, None, names.STEP_RETRIES),
        models=_models(changes.values()),
        resources_failed=sorted(
            {
                labels["resource"]
                for one in newest
                for labels, _ in one.values(names.RESOURCES)
                if labels["state"] == "failed"
            }
        ),
        circuits_open=sorted(
            {labels["connection"] for one in newest for labels, value in one.values(names.CIRCUIT_OPEN) if value}
        ),
    )


def _models(changes: Iterable[Change]) -> ModelsView | None:
    found = list(changes)
    newest = [now for _, now in found]
    if not any(any(one.values(metric)) for one in newest for metric in (names.LLM_CALLS, names.GATE_ACTIVE)):
        return None
    return ModelsView(
        calls_per_s=sum(_rate(change, names.LLM_CALLS) for change in found),
        tokens_per_s=sum(_token_rate(change) for change in found),
        cost=sum(one.total(names.LLM_COST) for one in newest),
        active=_sum(newest, names.GATE_ACTIVE),
        waiting=_sum(newest, names.GATE_WAITING),
        saved=_sum(newest, names.LLM_CALLS_SAVED),
    )


def _token_rate(change: Change) -> float:
    before, now = change
    return 0.0 if before is None else _grown(_tokens(before), _tokens(now)) / (now.at_s - before.at_s)


def _tokens(scrape: Scrape) -> float:
    """Return tokens; cached ones and those of reasoning are among the others."""
    return sum(
        value for labels, value in scrape.values(names.LLM_TOKENS) if labels["token_type"] in ("input", "output")
    )


def _sum(scrapes: Iterable[Scrape], metric: MetricName) -> int:
    return int(sum(scrape.total(metric) for scrape in scrapes))


def _rate(change: Change, metric: MetricName) -> float:
    before, now = change
    if before is None:
        return 0.0
    return _grown(before.total(metric), now.total(metric)) / (now.at_s - before.at_s)


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now


def _subtasks(address: str, scrape: Scrape) -> Iterator[SubtaskView]:
    def by_subtask(metric: MetricName) -> dict[int, float]:
        sums: dict[int, float] = {}
        for labels, value in scrape.values(metric):
            subtask = int(labels["subtask"])
            sums[subtask] = sums.get(subtask, 0) + value
        return sums

    pending, parked, sleeping = map(by_subtask, (names.RUNS_PENDING, names.RUNS_PARKED, names.RUNS_SLEEPING))
    mailbox, paused = by_subtask(names.MAILBOX_DEPTH), by_subtask(names.SOURCE_PAUSED)
    checkpoint, age = by_subtask(names.CHECKPOINT_ID), by_subtask(names.CHECKPOINT_AGE)
    duration, size = by_subtask(names.CHECKPOINT_DURATION), by_subtask(names.CHECKPOINT_SIZE)
    state = by_subtask(names.STATE_SIZE)
    for number, in_flight in by_subtask(names.RUNS_IN_FLIGHT).items():
        yield SubtaskView(
            subtask=number,
            process=address,
            in_flight=int(in_flight),
            pending=int(pending.get(number, 0)),
            parked=int(parked.get(number, 0)),
            sleeping=int(sleeping.get(number, 0)),
            mailbox=int(mailbox.get(number, 0)),
            is_paused=bool(paused.get(number, 0)),
            checkpoint=int(checkpoint.get(number, 0)),
            checkpoint_age_s=age.get(number),
            checkpoint_duration_s=duration.get(number),
            checkpoint_bytes=int(size.get(number, 0)),
            state_bytes=int(state.get(number, 0)),
        )


_Name = tuple[str, str]


def _calls(
    changes: Iterable[Change], label: str, durations: MetricName, failed: MetricName | None, retried: MetricName
) -> list[CallView]:
    """Return actions or steps. Without a metric of failures, a duration with an ``error.type`` is one."""
    total: dict[_Name, float] = {}
    failures: dict[_Name, float] = {}
    retries: dict[_Name, float] = {}
    per_s: dict[_Name, float] = {}
    counts: dict[_Name, dict[float, float]] = {}
    for before, now in changes:
        former = {} if before is None else _cumulative(before, durations)
        for labels, bound, count in now.buckets(durations):
            name = (labels["agent"], labels[label])
            grown = _grown(former.get((_slot(labels), bound), 0.0), count)
            if before is not None:
                by_bound = counts.setdefault(name, {})
                by_bound[bound] = by_bound.get(bound, 0.0) + grown
            if math.isinf(bound):
                _add(total, name, count)
                _add(per_s, name, 0.0 if before is None else grown / (now.at_s - before.at_s))
                if failed is None and labels.get("error_type"):
                    _add(failures, name, count)
        for metric, sums in ((failed, failures), (retried, retries)):
            for labels, value in () if metric is None else now.values(metric):
                _add(sums, (labels["agent"], labels[label]), value)
    views = [
        CallView(
            agent,
            called,
            per_s[agent, called],
            quantile(0.5, counts.get((agent, called), {})),
            quantile(0.99, counts.get((agent, called), {})),
            int(failures.get((agent, called), 0)),
            int(retries.get((agent, called), 0)),
            int(number),
        )
        for (agent, called), number in total.items()
    ]
    return sorted(views, key=lambda view: (-(view.p99_s or 0.0), -view.total, view.agent, view.name))


def _cumulative(scrape: Scrape, durations: MetricName) -> dict[tuple[frozenset[tuple[str, str]], float], float]:
    return {(_slot(labels), bound): count for labels, bound, count in scrape.buckets(durations)}


def _slot(labels: Labels) -> frozenset[tuple[str, str]]:
    return frozenset(pair for pair in labels.items() if pair[0] != "le")


def _add(sums: dict[_Name, float], name: _Name, value: float) -> None:
    sums[name] = sums.get(name, 0.0) + value


def quantile(share: float, cumulative: Mapping[float, float]) -> float | None:
    """Return a quantile of a histogram, interpolated within its bucket as Prometheus' `histogram_quantile` does.

    Args:
        share: 0.99 is the 99th percentile.
        cumulative: Upper bound → how many values are at most that; the last bound is infinite.

    Returns:
        The value; of one above the highest finite bound: that bound. None: there are no values.
    """
    bounds: Sequence[float] = sorted(cumulative)
    if not bounds or not cumulative[bounds[-1]]:
        return None
    rank = share * cumulative[bounds[-1]]
    for below, bound in itertools.pairwise([0.0, *bounds]):
        if cumulative[bound] >= rank:
            if math.isinf(bound):
                return below
            before = cumulative.get(below, 0.0)
            return below + (bound - below) * (rank - before) / (cumulative[bound] - before)
    return bounds[-1]
