"""What was trained, typed by its mathematics, and the rules by which dense weights come back."""
