"""What a header of HTTP can carry. Looked at where credentials are given: the libraries say it call by call, and show the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_CAN_BE_SENT = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?").fullmatch

SENT_VALUES: Final = "printable ASCII, without blanks or line ends around it"
"""What can be sent, for errors."""


def unsendable(headers: Mapping[str, str]) -> str:
    """Return the name of the first header whose value cannot be sent; empty: there is none."""
    return next((name for name, value in headers.items() if not _CAN_BE_SENT(value)), "")
