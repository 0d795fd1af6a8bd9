"""From a pack to tensors, or to a directory."""
