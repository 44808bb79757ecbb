"""Results as text, HTML pages, montages, charts and terminal pictures."""
