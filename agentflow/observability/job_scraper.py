"""The processes of a job, asked for their metrics again and again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from agentflow.errors import MetricsUnreachable
from agentflow.observability import names
from agentflow.observability.job_view import Change, JobView, view_of
from agentflow.observability.scrape import Scrape, fetch

_THREADS_MAX = 16


class JobScraper:
    """Asks processes for their metrics, and says what came since it asked before.

    Args:
        addresses: ``http://host:port`` of each process.
        has_more: Processes of the same job may listen on the ports behind the last one, without a gap
            (``agentflow worker --processes``): they are found.

    Attributes:
        unreachable: Address → why it did not answer the last time.
    """

    def __init__(self, addresses: Sequence[str], *, has_more: bool = False) -> None:
        self.unreachable: dict[str, MetricsUnreachable] = {}
        self._addresses = list(addresses)
        self._has_more = has_more
        self._newest: dict[str, Scrape] = {}

    def poll(self) -> JobView:
        """Return what those say that answer; blocks for a few seconds at most.

        Raises:
            MetricsUnreachable: None does.
        """
        with ThreadPoolExecutor(_THREADS_MAX) as threads:
            answers = dict(zip(self._addresses, threads.map(_asked, self._addresses), strict=True))
        self.unreachable = {address: one for address, one in answers.items() if isinstance(one, MetricsUnreachable)}
        found = {address: one for address, one in answers.items() if isinstance(one, Scrape)}
        if not found:
            raise next(iter(self.unreachable.values()))
        if self._has_more:
            self._find_more(found)
        changes: dict[str, Change] = {address: (self._newest.get(address), one) for address, one in found.items()}
        self._newest = found
        return view_of(changes)

    def _find_more(self, found: dict[str, Scrape]) -> None:
        jobs = {_job(scrape) for scrape in found.values()}
        while True:
            following = _next_port(self._addresses[-1])
            answer = _asked(following)
            if not isinstance(answer, Scrape) or _job(answer) not in jobs:
                return
            self._addresses.append(following)
            found[following] = answer


def _asked(address: str) -> Scrape | MetricsUnreachable:
    try:
        return fetch(address)
    except MetricsUnreachable as error:
        return error


def _job(scrape: Scrape) -> str:
    return next((labels["job"] for labels, _ in scrape.values(names.RECORDS_IN)), "")


def _next_port(address: str) -> str:
    place = urlsplit(address)
    host = f"[{place.hostname}]" if ":" in str(place.hostname) else place.hostname
    return f"{place.scheme}://{host}:{(place.port or 0) + 1}"
