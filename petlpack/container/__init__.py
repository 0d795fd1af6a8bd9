"""The bytes of one file: sections and a manifest, as a valid safetensors file."""

from petlpack.container.file import Container, EncodedSection, ReplacedError, Sections, read, write
from petlpack.container.manifest import BYTES, Manifest, SectionRow

__all__ = [
    "BYTES",
    "Container",
    "EncodedSection",
    "Manifest",
    "ReplacedError",
    "SectionRow",
    "Sections",
    "read",
    "write",
]
