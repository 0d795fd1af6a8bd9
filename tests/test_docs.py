"""The pages do what they say: their Python runs, their commands print what they show, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import petlpack
from tests.support.locks import pins
from tests.support.method_runs import write_adamix, write_propetl_roberta, write_propetl_t5
from tests.support.small_runs import make_pair, write_run

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "benchmarks" / "demo"
PAGES = sorted(
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "formats/**/*.md")
    for page in ROOT.glob(pattern)
)
ENCODERS = ("numpy", "pcodec", "rich", "zstandard")
"""Other versions of these may write other bytes, or draw other tables."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Python


def run_python(page: str, names: dict[str, Any]) -> None:
    """Run the Python of a page, block after block in one namespace, as it stands there."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, f"{page} has no Python"
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def write_full_runs() -> None:
    """Write the base and the full fine-tunes that pages name."""
    for seed, task in enumerate(("sst2", "rte"), start=1):
        tuned, base = make_pair(seed)
        write_run(Path("runs", task), tuned)
        write_run(Path("models", "bert-base"), base)


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes))


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_full_runs()
    names: dict[str, Any] = {"model": tiny_bert()}
    run_python("README.md", names)
    assert sorted(petlpack.open("glue.pack")) == ["sst2", "sst2-propetl"]
    assert set(names["state"]) == set(make_pair(1)[0])


def test_the_python_of_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_full_runs()
    write_propetl_t5(Path("out", "propetl-t5"), ["a", "b"])
    write_adamix(Path("out", "adamix"))
    write_propetl_roberta(Path("out", "propetl-lora"), "rte", kind="lora")
    run_python("docs/python.md", {})
    assert sorted(petlpack.open("glue.pack")) == ["adamix", "propetl-lora", "propetl-t5.a", "propetl-t5.b"]
    assert Path("out/sst2/model.safetensors").read_bytes() == Path("runs/sst2/model.safetensors").read_bytes()
    assert Path("out/peft/adapter_config.json").is_file()


# What commands print


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the demo's runs, where the test then is."""
    shutil.copytree(DEMO, tmp_path / "benchmarks" / "demo")
    monkeypatch.chdir(tmp_path / "benchmarks" / "demo")
    return Path()


def samples(page: str) -> list[tuple[str, str]]:
    """Return (command, what it prints) of all fences of a page that start with a command, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```\n(\$ .*?)^```", text, re.DOTALL | re.MULTILINE)
    parts = [part for fence in fences for part in re.split(r"^\$ (.*)\n", fence, flags=re.MULTILINE)[1:]]
    return [(command, output.strip("\n")) for command, output in zip(parts[::2], parts[1::2], strict=True)]


def print_of(command: str) -> str:
    """Run a command in bash, `petlpack` being this one, and return what it prints."""
    ours = {"PETLPACK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PETLPACK_")}
    script = 'petlpack() { "$PETLPACK_PYTHON" -m petlpack_cli "$@"; }\n' + command
    done = subprocess.run(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | ours | {"COLUMNS": "80"},
        encoding="utf-8",
        check=False,
    )
    return done.stdout.strip("\n")


def test_how_it_works_shows_what_commands_print_and_its_python_runs(demo: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("its commands are written for bash")
    locked = pins("dev", {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"})
    same = all(metadata.version(name) == str(version) for name, version in locked.items() if name in ENCODERS)
    shown = samples("docs/how-it-works.md")
    assert len(shown) >= 5
    for command, output in shown:
        printed = print_of(command)
        assert not same or printed == output, f"$ {command}: python benchmarks/samples.py renews the page"
    assert (demo / "out/model.safetensors").read_bytes() == (demo / "runs/devel-diff/model.safetensors").read_bytes()
    run_python("docs/how-it-works.md", {})


# Links


def without_code(text: str) -> str:
    """Return a page without its fences and code spans, which hold no links."""
    return re.sub(r"(`+)[^\n]*?\1", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        same = (f"{slug}-{i}" for i in range(1, 1000))
        found.add(slug if slug not in found else next(one for one in same if one not in found))
    return found


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of one."""
    broken = []
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("[a](other.md)", "no file"),
        ("![a](other.svg)", "no picture"),
        ("[a](page.md#other)", "no heading"),
        ("[a](#in-code)", "a heading in code"),
        ("[a](#one-two-2)", "no third heading of that name"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, link: str, why: str) -> None:
    page = tmp_path / "page.md"
    headings = "# One `two`\n\n# One, two!\n\n```\n# In code\n```\n"
    page.write_text(f"{headings}\n[a](#one-two) [b](#one-two-1) `[c](d)` {link}\n", encoding="utf-8")
    assert broken_links(page) == [link.partition("(")[2].rstrip(")")], why


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    left_out = {page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index}
    assert left_out == {"README.md"}


# Licence and citation


def test_the_citation_is_of_this_version_and_licence() -> None:
    yaml: Any = pytest.importorskip("yaml")  # comes with Transformers
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == petlpack.__version__
    assert re.search(
        rf'^license = "{citation["license"]}"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )
    assert [work["notes"] for work in citation["references"]] == ["PROPETL", "AdaMix", "diff pruning", "PHA"]
    for work in [citation, *citation["references"]]:
        assert work["title"]
        assert all(set(one) in ({"name"}, {"given-names", "family-names"}) for one in work["authors"]), work["title"]
