"""Named arrays: dtypes, bits as integers, digests, names, and the files they stand in."""
