"""From query vectors to matches: exact and approximate search, filters, feedback, and query vectors."""
