"""Search: BM25, dense retrieval, their sum, and the hybrid ranker."""
