"""One file per codec: a module and its base to sections and back."""
