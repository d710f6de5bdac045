"""A run's trace for people: as a tree in the terminal, and as a Mermaid graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from agentflow.api.executions import ExecutionEntityTypes, ExecutionStatus

if TYPE_CHECKING:
    from agentflow.observability.run_trace import Attempt, RunTrace, TraceNode

_VALUE_CHARS = 100
_WORDS = {ExecutionStatus.SUCCESS: "ok", ExecutionStatus.REUSED: "replayed"}
_STYLES = {
    ExecutionStatus.SUCCESS: "green",
    ExecutionStatus.REUSED: "cyan",
    ExecutionStatus.FAILED: "bold red",
    ExecutionStatus.DEAD_LETTERED: "bold red",
    ExecutionStatus.CANCELLED: "magenta",
    ExecutionStatus.SKIPPED: "yellow",
    ExecutionStatus.RETRYING: "yellow",
}
Part = tuple[str, str]
"""Text and style."""


def status_word(status: str) -> str:
    """Return a status as people say it."""
    return _WORDS.get(status, status)


def duration_words(ms: float | None) -> str:
    """Return a duration in the unit that suits it; empty where there is none."""
    if ms is None:
        return ""
    if ms < 1_000:
        return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"
    seconds = ms / 1_000
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def value_words(value: Any, limit: int = _VALUE_CHARS) -> str:  # noqa: ANN401 (any JSON)
    """Return a value as JSON, cut."""
    import msgspec

    text = msgspec.json.encode(value).decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def title(trace: RunTrace) -> list[Part]:
    """Return the line above the tree."""
    facts = f"key {value_words(trace.key)}  agent {trace.agent}  {trace.began}  {duration_words(trace.duration_ms)}"
    return [
        (printable(f"run {trace.run}"), "bold"),
        (printable(f"  {facts}  "), ""),
        (status_word(trace.status), _STYLES.get(trace.status, "")),
    ]


def node_parts(node: TraceNode) -> list[Part]:
    """Return the line of a node."""
    is_event = node.kind == "event"
    name = (printable(node.name), "bold")
    parts: list[Part] = [name] if is_event else [(f"{printable(node.kind)} ", ""), name]
    if node.status:
        parts += [("  ", ""), (status_word(node.status), _STYLES.get(node.status, ""))]
    if len(node.attempts) > 1:
        what = "attempts" if node.kind == ExecutionEntityTypes.ACTION else "calls"
        parts.append((f"  {len(node.attempts)} {what}", ""))
    if node.duration_ms is not None:
        parts.append((f"  {duration_words(node.duration_ms)}", "dim"))
    if node.error and len(node.attempts) < 2:
        parts.append((f"  {_line(node.error)}", "red"))
    if node.next_at and len(node.attempts) < 2:
        parts.append((f"  next at {node.next_at}", ""))
    if words := call_words(node):
        parts.append((f"  {printable(words)}", "dim"))
    elif node.attributes not in (None, {}):
        parts.append((f"  {value_words(node.attributes)}", "dim"))
    return parts


def call_words(node: TraceNode) -> str:
    """Return what a call of a model used and cost, or what a tool was called for; empty: it is neither, or says nothing of that."""
    known = node.attributes
    if not isinstance(known, dict):
        return ""
    if node.kind == ExecutionEntityTypes.TOOL and isinstance(call_id := known.get("toolCallId"), str):
        return call_id
    if node.kind != ExecutionEntityTypes.LLM or "provider" not in known:
        return ""  # the engine names it
    words = [str(known.get("model", known["provider"]))]
    given = [known.get(f"{name}_tokens") for name in ("input", "output", "cached", "reasoning")]
    tokens = [count if isinstance(count, int) else 0 for count in given]  # user code may report anything
    if any(tokens):
        words.append(f"{tokens[0]:,} → {tokens[1]:,} tokens")
        words += [f"{count:,} {name}" for count, name in zip(tokens[2:], ("cached", "reasoning"), strict=True) if count]
    if isinstance(cost := known.get("cost"), int | float):
        words.append(f"cost {cost:.4g}")
    attempt = known.get("attempt", 1)
    return ", ".join([*words, *([f"call {attempt}"] if attempt != 1 else [])])


def attempt_parts(node: TraceNode, attempt: Attempt) -> list[Part]:
    """Return the line of one of several attempts."""
    word = "attempt" if node.kind == ExecutionEntityTypes.ACTION else "call"
    parts: list[Part] = [
        (f"{word} {attempt.number}  ", ""),
        (status_word(attempt.status), _STYLES.get(attempt.status, "")),
    ]
    if attempt.duration_ms is not None:
        parts.append((f"  {duration_words(attempt.duration_ms)}", "dim"))
    if attempt.error:
        parts.append((f"  {_line(attempt.error)}", "red"))
    if attempt.next_at:
        parts.append((f"  next at {attempt.next_at}", ""))
    return parts


def _line(text: str) -> str:
    first, *more = text.split("\n")
    return printable(f"{first} …" if more else first)


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal but to be shown."""
    return text if text.isprintable() else "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)


def _below(node: TraceNode) -> list[tuple[list[Part], TraceNode | None]]:
    """Return the lines right below a node, with the nodes that they stand for."""
    attempts = node.attempts if len(node.attempts) > 1 else []
    lines: list[tuple[list[Part], TraceNode | None]] = [(attempt_parts(node, one), None) for one in attempts]
    return lines + [(node_parts(child), child) for child in node.children]


def text_tree(trace: RunTrace) -> str:
    """Return a trace as plain text: the same for the same records, whatever the terminal."""
    lines = [_plain(title(trace))]
    waiting = [("", root, node_parts(root), root is trace.roots[-1]) for root in reversed(trace.roots)]
    while waiting:
        before, node, parts, is_last = waiting.pop()
        lines.append(f"{before}{'└─ ' if is_last else '├─ '}{_plain(parts)}")
        if node is not None:
            below, inner = _below(node), f"{before}{'   ' if is_last else '│  '}"
            for place in range(len(below) - 1, -1, -1):
                inner_parts, child = below[place]
                waiting.append((inner, child, inner_parts, place == len(below) - 1))  # type: ignore[arg-type]  # None has no children
    return "\n".join(lines)


def _plain(parts: list[Part]) -> str:
    return "".join(text for text, _ in parts).rstrip()


def print_rich_tree(trace: RunTrace) -> None:
    """Print a trace on a terminal."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def line(parts: list[Part]) -> Text:
        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    tree = Tree(line(title(trace)))
    waiting = [(tree, root) for root in reversed(trace.roots)]
    while waiting:
        above, node = waiting.pop()
        branch = above.add(line(node_parts(node)))
        below = []
        for parts, child in _below(node):
            if child is None:
                branch.add(line(parts))
            else:
                below.append((branch, child))
        waiting += reversed(below)
    Console().print(tree)


# -- Mermaid
def mermaid(traces: list[RunTrace]) -> str:
    """Return traces as a Mermaid flow chart."""
    lines = ["flowchart TD"]
    for number, trace in enumerate(traces):
        lines += _mermaid_lines(trace, f"r{number}")
    for status, style in (
        ("failed", "stroke:#c00,color:#c00"),
        ("replayed", "stroke-dasharray:4 3"),
        ("ok", "stroke:#080"),
    ):
        lines.append(f"  classDef {status} {style}")
    return "\n".join(lines)


def _mermaid_lines(trace: RunTrace, prefix: str) -> Iterator[str]:
    yield f'  {prefix}["{_mermaid_text(_plain(title(trace)))}"]'
    names: dict[int, str] = {}
    waiting = [(prefix, root) for root in reversed(trace.roots)]
    while waiting:
        above, node = waiting.pop()
        name = names[id(node)] = f"{prefix}n{len(names)}"
        opening, closing = ("[", "]") if node.kind == "event" else ("([", "])")
        words = [node.name if node.kind == "event" else f"{node.kind} {node.name}", status_word(node.status)]
        text = " · ".join(word for word in [*words, duration_words(node.duration_ms), call_words(node)] if word)
        yield f'  {name}{opening}"{_mermaid_text(text)}"{closing}'
        yield f"  {above} --> {name}"
        if node.status in _STYLES:
            is_good = node.status in _WORDS
            yield f"  class {name} {status_word(node.status) if is_good else 'failed'}"
        waiting += [(name, child) for child in reversed(node.children)]


def _mermaid_text(text: str) -> str:
    return "".join(f"#{ord(char)};" if char in '"#<>&`\\\n' else char for char in text)
