"""Measurements. Claims about speed live here, never in a timed test."""
