"""Search without generation: BM25, dense retrieval, fusion, and the hybrid ranker."""
