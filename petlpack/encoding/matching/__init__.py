"""Which tensor of the base each tensor of a run comes from, told by names, shapes and weights."""
