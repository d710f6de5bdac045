"""Conformance suites: one per port. An adapter passes its suite, or it is not that port."""
