"""Run directories: one file a layout, the first in the table that knows a directory reads it."""
