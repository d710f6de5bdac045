"""Agents that talk to models. All of them run with a scripted model: no key, no network."""
