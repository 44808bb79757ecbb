"""Results for people: HTML pages and montages."""
