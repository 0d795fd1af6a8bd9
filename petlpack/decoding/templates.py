"""The templates of a pack, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from petlpack.errors import naming, printable
from petlpack.records.base_table import BaseTable, parse_base_table
from petlpack.records.template import Template, parse_template
from petlpack.sections.shared import find_shared, read_text_file
from petlpack.store import Store

MAX_TEMPLATE = 1 << 25
"""Bytes of a template: 32 MB describe a hundred thousand tensors, and parsing a hostile one stays cheap."""

TEMPLATES = 64
"""Templates that a pack keeps in memory: tasks of one kind share one."""


class Templates:
    """The templates of a pack that were read lately, and the tables of bases that they name."""

    def __init__(self, store: Store, parts: Mapping[str, Path] | None = None) -> None:
        """Read them from a store; `parts` are files of shared parts that are not in their place yet."""
        self._store, self._parts = store, parts or {}
        self._texts: dict[str, bytes] = {}
        self._tables: dict[str, BaseTable] = {}
        self._templates: dict[tuple[str, str | None], Template] = {}

    def read(self, sha256: str, name: str | None) -> Template:
        """Read and parse a template for a task that is called `name` in it; raises DamageError."""
        if (sha256, name) not in self._templates:
            if len(self._templates) == TEMPLATES:
                self._templates.clear()
                self._texts = dict.fromkeys([sha256], self._texts[sha256]) if sha256 in self._texts else {}
            if sha256 not in self._texts:
                self._texts[sha256] = self._read(sha256)
            text = self._texts[sha256]
            file = self._file(sha256)
            with naming(file):
                self._templates[sha256, name] = parse_template(text, f"'{printable(str(file))}'", name, self.table)
        return self._templates[sha256, name]

    def table(self, sha256: str) -> BaseTable:
        """Read and parse the table of a base; raises DamageError."""
        if sha256 not in self._tables:
            self._tables[sha256] = parse_base_table(self._read(sha256), f"'{printable(str(self._file(sha256)))}'")
        return self._tables[sha256]

    def _read(self, sha256: str) -> bytes:
        return read_text_file(self._file(sha256), sha256, MAX_TEMPLATE)

    def _file(self, sha256: str) -> Path:
        return self._parts.get(sha256) or find_shared(self._store, sha256)
