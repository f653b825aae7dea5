"""Synthetic queries: templates, a language model, filters (chapter 04)."""
