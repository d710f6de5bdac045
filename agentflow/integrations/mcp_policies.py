"""How tools of MCP servers are called: `ToolPolicy` as JSON."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from agentflow.api.failure import Retry
from agentflow.api.tools import ToolPolicy

_Count = Annotated[int, msgspec.Meta(ge=1)]


class _RetryFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    attempts: _Count = 3
    initial: str = "500ms"
    multiplier: float = 2.0
    wait_max: str = "30s"
    jitter: float = 0.2


class _PolicyFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    timeout: str | None = None
    retry: _RetryFields | None = None
    idempotent: bool | None = None
    requires_approval: bool = False
    approval_timeout: str | None = None
    result_max: _Count | None = None


POLICY_FIELDS: Final = f"fields of a ToolPolicy: {', '.join(_PolicyFields.__struct_fields__)}"


def policy_from(given: object) -> tuple[ToolPolicy, bool]:
    """Return a policy from its fields, and whether they say if the tool is idempotent.

    Raises:
        ValueError: They are none.
    """
    fields = msgspec.convert(given, _PolicyFields)
    policy = ToolPolicy(
        timeout=fields.timeout,
        retry=None if fields.retry is None else Retry(**msgspec.structs.asdict(fields.retry)),
        idempotent=fields.idempotent is not False,
        requires_approval=fields.requires_approval,
        approval_timeout=fields.approval_timeout,
        result_max=fields.result_max,
    )
    return policy, fields.idempotent is not None
