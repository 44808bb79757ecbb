"""The files of one index: database, feature files, meta, lock, and `Index`, the handle on them."""
