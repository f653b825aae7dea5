"""Metrics, evaluation, published figures, tables and plots."""
