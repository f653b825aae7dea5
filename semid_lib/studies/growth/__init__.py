"""How time and memory grow with the catalogue (chapter 09)."""
