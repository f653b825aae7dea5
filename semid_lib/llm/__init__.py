"""A language model that answers a query with items (chapter 05)."""
