"""What files say of tasks, parsed once: templates, tables of bases, sources of tensors, facts."""
