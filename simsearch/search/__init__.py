"""From query vectors to matches: exact and approximate search, duplicates, feedback, and query vectors."""
