"""The files of one index (database, feature files, `meta.json`, writer lock), and `Index`, which opens them."""
