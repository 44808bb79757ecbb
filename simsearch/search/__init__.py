"""Search in an index: query vectors, exact and approximate nearest neighbours, duplicates, and relevance feedback."""
