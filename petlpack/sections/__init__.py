"""Units to sections of a file, and back: writer and reader side by side."""
