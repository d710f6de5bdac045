"""An MCP server of a shop, by the official SDK: the example `react_with_mcp` starts it as a process and talks to it over stdio."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

ORDERS = {
    "A-17": {"item": "pan-saltire", "status": "sent", "city": "Lisbon"},
    "B-4": {"item": "babycam-owl", "status": "packed", "city": "Graz"},
}
DAYS = {"Lisbon": 3, "Graz": 1}

shop = MCPServer("shop")


@shop.tool()
def order_status(order_id: str) -> dict[str, str]:
    """Say what is in an order, where it goes, and how far it is.

    Args:
        order_id: Number of the order, such as A-17.
    """
    if order_id not in ORDERS:
        raise ToolError(f"there is no order {order_id}")
    return ORDERS[order_id]


@shop.tool()
def delivery_days(city: str) -> int:
    """Say how many days a parcel takes to a city."""
    return DAYS.get(city, 5)


if __name__ == "__main__":
    shop.run("stdio")
