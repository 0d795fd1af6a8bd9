"""What a task is written as for other libraries: one file an export."""
