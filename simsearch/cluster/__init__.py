"""Building on many machines with Ray and searching in Milvus (extra `[cluster]`)."""
