"""Everything that writes an index: plan, load, extract, sync, merge, compact, tune."""
