"""A run's trace as one HTML file: a tree with a waterfall. No script, no font, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agentflow.api.executions import ExecutionStatus
from agentflow.cli.trace_views import attempt_parts, duration_words, status_word, value_words

if TYPE_CHECKING:
    from agentflow.observability.run_trace import RunTrace, TraceNode

_BAD = (ExecutionStatus.FAILED, ExecutionStatus.DEAD_LETTERED, ExecutionStatus.CANCELLED)
_LEAST_PERCENT = 0.15  # a bar that is still seen
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #2e8b57; --bad: #c0392b; --reused: #2980b9; --wait: #b7950b; }}
body {{ font: 13px/1.5 system-ui, sans-serif; margin: 1.5rem; }}
h1 {{ font-size: 1.1rem; margin: 1.5rem 0 .3rem; overflow-wrap: anywhere; }}
.facts {{ color: #888; margin: 0 0 .8rem; }}
.row {{ display: grid; grid-template-columns: minmax(18rem, 38%) 1fr; border-top: 1px solid var(--line); align-items: start; }}
.row:hover {{ background: #8881; }}
details > summary {{ list-style: none; cursor: pointer; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
details > summary::before {{ content: "▸ "; color: #888; }}
details[open] > summary::before {{ content: "▾ "; }}
pre {{ margin: 0 0 .4rem 1.2rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }}
.bars {{ position: relative; height: 1.5em; }}
.bar {{ position: absolute; top: .3em; height: .9em; border-radius: 2px; background: var(--good); min-width: 2px; }}
.bar.bad {{ background: var(--bad); }} .bar.reused {{ background: repeating-linear-gradient(45deg, var(--reused) 0 4px, transparent 4px 7px); }}
.bar.open {{ background: var(--wait); }} .bar.event {{ width: 0; min-width: 0; border-left: 2px solid #888; border-radius: 0; background: none; }}
.bar span {{ position: absolute; left: calc(100% + 4px); top: -.25em; white-space: nowrap; color: #888; font-size: 11px; }}
.kind {{ color: #888; }} .bad {{ color: var(--bad); }} .good {{ color: var(--good); }} .reused {{ color: var(--reused); }} .open {{ color: var(--wait); }}
</style></head><body>
{body}
</body></html>
"""


def html_page(traces: list[RunTrace]) -> str:
    """Return one page with all traces."""
    title = html.escape(f"Trace of {', '.join(trace.run for trace in traces)}")
    return _PAGE.format(title=title, body="\n".join("\n".join(_trace(trace)) for trace in traces))


def _trace(trace: RunTrace) -> Iterator[str]:
    facts = (
        f"key {value_words(trace.key)}",
        f"agent {trace.agent}",
        trace.began,
        duration_words(trace.duration_ms),
        status_word(trace.status),
        f"{trace.records} records",
    )
    yield f"<h1>run {html.escape(trace.run)}</h1>"
    yield f'<p class="facts">{html.escape(" · ".join(facts))}</p>'
    waiting = [(0, root) for root in reversed(trace.roots)]
    while waiting:
        depth, node = waiting.pop()
        yield _row(trace, depth, node)
        waiting += [(depth + 1, child) for child in reversed(node.children)]


def _row(trace: RunTrace, depth: int, node: TraceNode) -> str:
    mark = _mark(node)
    kind = "" if node.kind == "event" else f'<span class="kind">{html.escape(node.kind)}</span> '
    status = f' <span class="{mark}">{html.escape(status_word(node.status))}</span>' if node.status else ""
    more = [f"id {node.id}", *([f"error {node.error}"] if node.error else [])]
    more += [
        "".join(text for text, _ in attempt_parts(node, attempt)) for attempt in node.attempts if len(node.attempts) > 1
    ]
    more += [_pretty(node.attributes)] if node.attributes not in (None, {}) else []
    return (
        f'<div class="row"><details style="padding-left:{depth * 1.1:.1f}rem"><summary>{kind}<b>{html.escape(node.name)}</b>{status}'
        f"</summary><pre>{html.escape(chr(10).join(more))}</pre></details>{_bar(trace, node, mark)}</div>"
    )


def _bar(trace: RunTrace, node: TraceNode, mark: str) -> str:
    from agentflow.observability.run_trace import time_ms

    first, began, ended = time_ms(trace.began), time_ms(node.began), time_ms(node.ended)
    if first is None or began is None:
        return '<div class="bars"></div>'
    whole = max(trace.duration_ms, 0.001)
    left = min(100.0 - _LEAST_PERCENT, max(0.0, 100 * (began - first) / whole))
    if node.kind == "event":
        return f'<div class="bars"><div class="bar event" style="left:{left:.3f}%"></div></div>'
    until = first + trace.duration_ms if ended is None else ended
    width = min(100 - left, max(_LEAST_PERCENT, 100 * (until - began) / whole))
    text = html.escape(duration_words(node.duration_ms))
    return f'<div class="bars"><div class="bar {mark}" style="left:{left:.3f}%;width:{width:.3f}%"><span>{text}</span></div></div>'


def _mark(node: TraceNode) -> str:
    if node.status in _BAD:
        return "bad"
    return {ExecutionStatus.SUCCESS: "good", ExecutionStatus.REUSED: "reused", ExecutionStatus.SKIPPED: "bad"}.get(
        node.status, "open"
    )


def _pretty(value: object) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
