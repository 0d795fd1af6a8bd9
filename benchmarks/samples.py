"""Run the commands that README.md, docs/cli.md and docs/how-it-works.md show, and put what they print in their place.

    python benchmarks/samples.py

In a copy of benchmarks/demo, at 80 columns; a pack `glue.pack` of all its runs is there for docs/cli.md. Of an output
whose first line is `...` on the page, what stands before the page's second line is cut.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = Path("benchmarks") / "demo"
PAGES = {
    "README.md": "true",
    "docs/cli.md": f"cd {DEMO} && petlpack encode runs/* --base base --pack glue.pack >/dev/null 2>&1",
    "docs/how-it-works.md": f"cd {DEMO}",
}
"""Pages, and what is done before their first command."""
BLOCK = re.compile(r"(?<=^```\n)\$ .*?(?=^```$)", re.DOTALL | re.MULTILINE)
MARK = "--- next command ---"


def run(commands: list[str], before: str) -> list[str]:
    """Run commands one after another in one shell; return what each prints."""
    script = [before, *(f"{command} 2>&1; echo '{MARK}'" for command in commands)]
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(ROOT / DEMO, Path(directory) / DEMO)
        path = f"PATH={Path(sys.executable).parent}:$PATH; export COLUMNS=80"
        done = subprocess.run(
            ["bash", "-c", "\n".join([path, *script])], cwd=directory, capture_output=True, text=True, check=False
        )
    outputs = done.stdout.split(f"{MARK}\n")[:-1]
    if len(outputs) != len(commands):
        raise SystemExit(f"{len(commands)} commands, {len(outputs)} outputs: {done.stdout[-400:]}{done.stderr}")
    return outputs


def cut(output: str, shown: str) -> str:
    """Cut what a page leaves out in front."""
    if not shown.startswith("...\n"):
        return output
    first = shown.split("\n")[1]
    return "...\n" + output[output.index(first) :]


def renew(page: Path, before: str) -> None:
    """Replace the outputs on one page."""
    text = page.read_text(encoding="utf-8")
    samples = [re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:] for block in BLOCK.findall(text)]
    commands = [sample[i] for sample in samples for i in range(0, len(sample), 2)]
    outputs = iter(run(commands, before))
    blocks = []
    for sample in samples:
        pairs = zip(sample[::2], sample[1::2], strict=True)
        parts = [(command, cut(next(outputs), shown).rstrip("\n")) for command, shown in pairs]
        lines = [f"$ {command}\n{output}\n" if output else f"$ {command}\n" for command, output in parts]
        blocks.append(
            "".join(line + ("\n" if out else "") for line, (_, out) in zip(lines, parts, strict=True)).rstrip()
        )
    new = iter(blocks)
    page.write_text(BLOCK.sub(lambda _: next(new) + "\n", text), encoding="utf-8")


if __name__ == "__main__":
    for name, before in PAGES.items():
        renew(ROOT / name, before)
