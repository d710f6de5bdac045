"""Trigger texts: an event type, or a CEL condition.

A text is an **event type** when all of it is one plain name: a letter or ``_``, then letters, digits and ``_ . : / -``
(ASCII). Anything else is **CEL**. Three kinds of text look like a name and are not one: ``true`` and ``false`` and what
starts with ``attributes.`` are CEL (``attributes.urgent``); a bare boolean attribute is therefore written with its prefix or
with an operator (``urgent == true``).
"""

from __future__ import annotations

import re

from agentflow.api.events import EventType
from agentflow.plan.condition_text import DEPTH_MAX, EVENT_TYPES, LENGTH_MAX, ConditionTextError
from agentflow.plan.conditions import Condition
from agentflow.plan.problems import ProblemList, nearest

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*")
_CEL_WORDS = frozenset({"true", "false"})
_ROUTED = {constant: name for constant, name in EVENT_TYPES.items() if name != EventType.OutputEvent}
_BY_SHAPE = {constant.casefold(): constant for constant in EVENT_TYPES}
_NAME_RULE = "an event type (a letter or '_', then letters, digits and '_ . : / -'), or a CEL expression"


def is_event_type(text: str) -> bool:
    """Whether a trigger text names an event type; otherwise it is CEL."""
    return _NAME.fullmatch(text) is not None and text not in _CEL_WORDS and not text.startswith("attributes.")


class Triggers:
    """The triggers of one action, checked."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.conditions: list[Condition] = []

    def read(self, texts: tuple[object, ...], place: str, problems: ProblemList) -> None:
        """Sort trigger texts into types and conditions, each once; what cannot be used becomes a problem."""
        if not texts:
            problems.add("it has no trigger", place=place, expected=_NAME_RULE, fix="@action(EventType.InputEvent)")
        for text in texts:
            if not isinstance(text, str):
                what = f"trigger {text!r} is of type {type(text).__name__}"
                problems.add(what, place=place, expected=f"a str: {_NAME_RULE}; or an Event subclass")
            elif not text.strip():
                problems.add(
                    f"trigger {text!r} is blank",
                    place=place,
                    expected=_NAME_RULE,
                    fix="remove it, or write the event type; a subclass of Event needs an EVENT_TYPE of its own",
                )
            elif is_event_type(text.strip()):
                self._read_type(text.strip(), place, problems)
            elif text not in (condition.source for condition in self.conditions):
                self._read_condition(text, place, problems)

    def _read_type(self, name: str, place: str, problems: ProblemList) -> None:
        shape = name.removeprefix("EventType.").replace("_", "").casefold()
        if name == EventType.OutputEvent:
            problems.add(
                f"trigger '{name}' (EventType.OutputEvent) never fires: an output leaves the operator and is not routed",
                place=place,
                fix="send an event of your own beside the OutputEvent, and listen to that",
            )
        elif name in _ROUTED.values():
            if name not in self.types:
                self.types.append(name)
        elif shape in _BY_SHAPE or name.startswith("EventType."):
            constant = _BY_SHAPE.get(shape) or nearest(name.removeprefix("EventType."), _ROUTED) or "InputEvent"
            problems.add(
                f"trigger '{name}' is not the built-in event type '{EVENT_TYPES[constant]}'",
                place=place,
                fix=f"did you mean EventType.{constant}? (without quotes)",
            )
        elif name.startswith("_"):
            near = nearest(name, _ROUTED.values())
            constant = next((key for key, value in _ROUTED.items() if value == near), "")
            problems.add(
                f"trigger '{name}' is unknown: types that start with '_' belong to the engine",
                place=place,
                expected=f"one of {', '.join(_ROUTED.values())}, or a name of your own without the '_'",
                fix=f"did you mean '{near}' (EventType.{constant})?" if near else "",
            )
        elif name not in self.types:
            self.types.append(name)

    def _read_condition(self, source: str, place: str, problems: ProblemList) -> None:
        try:
            self.conditions.append(Condition(source))
        except ConditionTextError as error:
            shown = source if len(source) <= 200 else source[:200] + " …"
            detail = str(error).replace("\n", "\n  ")
            problems.add(
                f"condition {shown!r} cannot be used: {detail}",
                place=place,
                expected=f"a CEL expression of at most {LENGTH_MAX:,} characters and {DEPTH_MAX} nested brackets that is true or "
                "false, over type, attributes and EventType; or an event type",
            )
