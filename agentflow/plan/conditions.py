"""Compiled CEL conditions. The only place that imports the CEL library, and only for an agent that has a condition.

The library is ``common-expression-language`` (Rust). What decided for it against Google's ``cel-expr-python``: a missing
key has an exception class of its own (`KeyError`), where the other tells it from a type error by text alone, and ``type``
can be a variable, which the other refuses. Its peculiarities that users can meet:

- int and double compare as numbers (``5 == 5.0``, ``2 < 2.5``), but do not add: ``average + 1`` with a double is an error;
  write ``double(average) + 1.0``. Integers beyond 64 bits are compared as doubles.
- a bool is no number (``true == 1`` is false, ``true < 2`` an error); NaN compared by order is an error.
- an index outside of a list is an error, not a missing attribute.
- ``size('é')`` counts UTF-8 bytes.
- ``false && error`` is false and ``true || error`` is true, on either side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow.errors import ConditionError
from agentflow.plan.condition_text import ConditionTextError, check_limits, pick, read_condition

if TYPE_CHECKING:
    import cel

_FUNCTIONS = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "type", "dyn"}
    | {"timestamp", "duration", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"}
    | {"getHours", "getMinutes", "getSeconds", "getMilliseconds"}
)
"""Functions of the library's core; another one would only be found missing when the first event comes."""

_ERROR_CHARS_MAX = 600  # a parse error repeats the whole expression


class Condition:
    """One condition of an action.

    Attributes:
        source: As the author wrote it.
        only_type: The one event type it can be true for; None: any.
        has_reads: It reads attributes, so the event has to be decoded.
        missing_count: Evaluations that ended because an attribute was missing, since the plan was made.
    """

    __slots__ = ("_execute", "_reads", "has_reads", "missing_count", "only_type", "source")

    def __init__(self, source: str) -> None:
        """Compile ``source``.

        Raises:
            ConditionTextError: Too long, too deep, not CEL, or with names that a condition cannot have.
        """
        check_limits(source)
        _compile(source)  # the author's own text first: error positions are those of what was written
        text = read_condition(source)
        program = _compile(text.program)
        self.source = source
        self.only_type = text.only_type
        self.missing_count = 0
        self.has_reads = text.reads != {}
        self._reads = text.reads
        self._execute = program.execute

    def can_match(self, event_type: str) -> bool:
        """Whether an event of this type, with whatever attributes, may make it true, or make it fail."""
        if self.only_type is not None or self.has_reads:
            return self.only_type in (None, event_type)
        try:
            return self.is_true(event_type, {})
        except ConditionError:
            return True

    def is_true(self, event_type: str, attributes: dict[str, Any]) -> bool:
        """Evaluate for one event; a missing attribute counts and is no match.

        Args:
            event_type: The event's type.
            attributes: Its decoded attributes; may be empty when the condition reads none.

        Raises:
            ConditionError: Any other failure, or an outcome that is no bool.
        """
        picked = pick(attributes, self._reads)
        try:
            outcome = self._execute({"type": event_type, "attributes": picked})
        except KeyError:
            self.missing_count += 1
            return False
        except (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
            raise ConditionError(f"condition {self.source!r} failed: {type(error).__name__}: {error}") from error
        if outcome is True or outcome is False:
            return outcome
        raise ConditionError(
            f"condition {self.source!r} gave {outcome!r} ({type(outcome).__name__}), not true or false"
        )


def _compile(source: str) -> cel.Program:
    try:
        import cel
    except ImportError as error:
        raise ConditionTextError(
            f"CEL conditions need the package 'common-expression-language', which cannot be imported ({error})"
        ) from error
    try:
        program = cel.compile(source)
    except ValueError as error:
        text = str(error)
        if len(text) > _ERROR_CHARS_MAX:
            text = text[:_ERROR_CHARS_MAX] + " …"
        raise ConditionTextError(f"it is not CEL: {text}") from error
    unknown = [name for name in program.functions() if name.isidentifier() and name not in _FUNCTIONS]
    if unknown:
        raise ConditionTextError(f"it calls {', '.join(f'{name}()' for name in unknown)}, which does not exist here")
    return program
