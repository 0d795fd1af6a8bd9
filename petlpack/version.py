"""The version of this package, which hatch reads from here, too."""

__version__ = "0.1.0"
