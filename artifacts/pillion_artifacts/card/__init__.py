"""Model cards: what a policy says of itself, and whether its files agree."""
