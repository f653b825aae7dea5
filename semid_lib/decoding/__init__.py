"""The prefix trie and constrained decoding (chapter 06)."""
