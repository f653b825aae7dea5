"""What one chapter measures once: growth, costs, other decoders (chapters 06, 08 and 09)."""
