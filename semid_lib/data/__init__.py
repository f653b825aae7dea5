"""The data folder: read, check, split, import; and the demo shop (chapter 01)."""
