"""The HTTP service: `simsearch.create_app` and `simsearch serve`."""
