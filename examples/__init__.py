"""Agents and data to start from; run them from the repository root."""
