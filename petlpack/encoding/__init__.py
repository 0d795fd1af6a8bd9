"""From a run to a pack: match, prune, share, describe, write."""
