"""Next-item recommendation: timeline, TIGER, SASRec and baselines (chapter 07)."""
