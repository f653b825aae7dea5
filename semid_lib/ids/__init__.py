"""From text to semantic IDs: embed, quantize, name, and look at the codebooks (chapters 01 to 03)."""
