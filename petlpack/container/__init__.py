"""The bytes of one file: sections and a manifest, as a valid safetensors file."""

from petlpack.container.file import Container, Encoded, ReplacedError, Sections, read, write
from petlpack.container.manifest import Manifest, SectionRow

__all__ = ["Container", "Encoded", "Manifest", "ReplacedError", "SectionRow", "Sections", "read", "write"]
