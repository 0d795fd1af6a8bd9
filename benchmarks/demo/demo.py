"""`make demo`: encode the small runs beside this file, show what they cost, decode one and compare every byte."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent.relative_to(Path.cwd())
OUT = Path("build/demo")


def petlpack(*arguments: str | Path) -> None:
    """Run the command line as a user would, and show what was typed."""
    print(f"\n$ petlpack {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "petlpack_cli", *map(str, arguments)], check=True)


def main() -> None:
    """Pack, account, unpack, compare."""
    shutil.rmtree(OUT, ignore_errors=True)
    runs = sorted(path for path in (HERE / "runs").iterdir() if path.is_dir())
    base, pack = HERE / "base", OUT / "debian.pack"
    petlpack("encode", *runs, "--base", base, "--pack", pack)
    petlpack("stats", pack)
    petlpack("decode", pack, "section", OUT / "section", "--base", base)
    same = filecmp.cmp(
        HERE / "runs" / "section" / "model.safetensors", OUT / "section" / "model.safetensors", shallow=False
    )
    print(f"\nmodel.safetensors of 'section' came back {'bit for bit' if same else 'CHANGED'}.")
    sys.exit(not same)


if __name__ == "__main__":
    main()
