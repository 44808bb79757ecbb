"""Examines an index: outliers, wrong labels, leaks, a diverse choice, maps; `cleanup` moves or links duplicates."""
