"""What things cost: rows, not prints."""
