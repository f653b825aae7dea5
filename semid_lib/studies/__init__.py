"""What single chapters measure or tabulate: growth, costs, service starts, other decoders (chapters 05 to 11)."""
