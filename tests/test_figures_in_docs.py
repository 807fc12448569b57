"""Every figure that README and docs report stands in a result of ``benchmarks/results``.

A block (a table, a paragraph, a list) that reports figures is followed by a comment that says where they are from::

    <!-- figures: alignment.md source, source-150; alignment_memory.json adjusted/*; given: 600, 150 -->

Of a JSON file, paths (each part a pattern) of numbers or of what holds them; ``mean(path)`` and ``sd(path)`` of them;
``ratio(path : path)`` for the ratios of two lists, their geometric mean and its 95 % interval. Of a Markdown table, the first cells of
rows, without a number of seeds in brackets. Nothing behind the file's name means all of it. ``given`` are settings and counts that no
script measured.

Every number of the block must be one of these, rounded as it is printed; a line of a table that begins as a row of such a Markdown file
must have that row's. A source behind ``[text]`` is for lines, and items of a list, with that text alone. Blocks that must have such a
comment are tables with a decimal fraction, and whatever mentions ``benchmarks/`` or that something was measured, or stands in a section of
what was; ``none`` where there are settings alone.
"""

import fnmatch
import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST = 120  # values that a line's numbers may be: among more, a wrong number finds one that it is
MEASURED = re.compile(r"\bmeasured\b", re.IGNORECASE)
COMMENT = re.compile(r"<!--\s*figures:(.*?)-->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w./@#-])((?:[-−+] ?)?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+))( ?%)?(?![\w/])")


class Block(NamedTuple):
    text: str
    sources: str | None  # of its comment
    section: str = ""  # its heading of the second level


def blocks(text: str) -> Iterator[Block]:
    """Blocks of a document without its code; a comment belongs to the block before it."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    section = ""
    for place, part in enumerate(parts):
        section = part if part.startswith("## ") else section
        after = parts[place + 1] if place + 1 < len(parts) else ""
        found = COMMENT.search(part) or COMMENT.match(after.strip())
        bare = COMMENT.sub("", part)
        if bare.strip():
            yield Block(bare, found.group(1) if found else None, section)


def numbers(text: str) -> list[str]:
    """Numbers as printed, with a per cent sign; none of code, link targets and headings' numbering."""
    for pattern in (r"95 % (?=interval|of means)", r"`[^`]*`", r"\]\([^)]*\)", r"<[^>]*>", r"\barXiv[: ]\S+", r"\bdoi \S+"):
        text = re.sub(pattern, " ", text)
    text = re.sub(r"([\d.]+) (to|and|or) ([\d.]+) ?%", r"\1 % \2 \3 %", text)
    return [number + ("%" if percent else "") for number, percent in NUMBER.findall(text)]


def must_have_sources(block: Block) -> bool:
    table, text = block.text.lstrip().startswith("|"), block.text
    decimals = any("." in number or "%" in number for number in numbers(text))
    return decimals and (table or "benchmarks/" in text or MEASURED.search(text + block.section) is not None)


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, str):
        yield from map(as_number, numbers(value))


def at(value: Any, path: list[str]) -> Iterator[Any]:
    """What stands at a path, each part a pattern."""
    if not path:
        yield value
        return
    parts = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    for name, part in parts.items():
        if fnmatch.fnmatchcase(str(name), path[0]):
            yield from at(part, path[1:])


def as_number(printed: str) -> float:
    number = float(printed.rstrip("%").replace(",", "").replace("−", "-").replace(" ", ""))
    return number / 100 if printed.endswith("%") else number


def allowed(sources: str, line: str = "", first_cell: str | None = None) -> list[float]:
    """All numbers that a comment's sources hold for ``line``; of a Markdown table with the row ``first_cell`` only those of that row."""
    found: list[float] = []
    for source in filter(None, (part.strip() for part in sources.split(";"))):
        only = re.match(r"\[(.*?)\] *(.*)", source, re.DOTALL)
        if only and only[1] not in line:
            continue
        file, _, rest = (only[2] if only else source).partition(" ")
        chosen = [name.strip() for name in rest.split(", ") if name.strip()]
        if file == "given:":
            found += map(as_number, numbers(rest.replace(", ", " ; ")))
        else:
            assert (RESULTS / file).is_file(), f"{file}: no such file in benchmarks/results"
            found += of_json(file, chosen) if file.endswith(".json") else of_table(file, chosen, first_cell)
    return found


def of_json(file: str, paths: list[str]) -> Iterator[float]:
    whole = json.loads((RESULTS / file).read_text())

    def values(path: str) -> list[float]:
        there = list(at(whole, path.strip().split("/") if path else []))
        assert there, f"{file}: nothing at {path.strip()}"
        return list(leaves(there))

    for path in paths or [""]:
        called = re.fullmatch(r"(mean|sd|ratio)\((.*)\)", path)
        if called is None:
            yield from values(path)
        elif called[1] == "ratio":
            above, below = map(values, called[2].split(":"))
            logs = [math.log(one / other) for one, other in zip(above, below, strict=True)]
            yield from map(math.exp, logs)
            if len(logs) > 1:
                error = statistics.stdev(logs) / math.sqrt(len(logs))
                yield from (math.exp(statistics.fmean(logs) + error * stats.t.ppf(q, len(logs) - 1)) for q in (0.025, 0.5, 0.975))
        else:
            yield {"mean": statistics.fmean, "sd": statistics.stdev}[called[1]](values(called[2]))


def of_table(file: str, names: list[str], first_cell: str | None) -> Iterator[float]:
    lines = [line.split("|")[1:-1] for line in (RESULTS / file).read_text().splitlines() if line.startswith("|")]
    rows = [(name_of(cells), cells) for cells in lines]
    for name in names:
        assert any(row == name for row, _ in rows), f"{file}: no row {name}"
    if first_cell is not None and any(row == first_cell for row, _ in rows):
        names = [first_cell]
    for row, cells in rows:
        if not names or row in names:
            yield from (as_number(number) for cell in cells for number in numbers(cell))


def name_of(cells: list[str]) -> str:
    return re.sub(r" \(\d+\)$", "", cells[0].strip())


def matches(printed: str, values: list[float]) -> bool:
    """Whether a value is rounded to what is printed; a whole number must be one."""
    digits = len(printed.rstrip("%").partition(".")[2]) + 2 * printed.endswith("%")
    if digits == 0:
        return as_number(printed) in values
    return any(abs(value - as_number(printed)) <= 0.5000001 * 10**-digits for value in values)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_figure_stands_in_a_result(path: Path) -> None:
    faults = []
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.sources is not None and block.sources.strip() == "none":
            continue
        if block.sources is None:
            if must_have_sources(block):
                faults.append(f"no source: {block.text.strip()[:90]!r}")
            continue
        text = block.text.strip()
        if re.search(r"^#", text, re.MULTILINE):
            faults.append(f"a heading without an empty line before it: {text[:60]!r}")
        wrong = []
        for line in text.splitlines() if text.startswith("|") else re.split(r"\n(?=- |\d\. )", text):
            values = allowed(block.sources, line, name_of(line.split("|")[1:-1]) if line.startswith("|") else None)
            if len(set(values)) > MOST:
                faults.append(f"{len(set(values))} values could be meant, {MOST} at most: {line[:60]!r}")
            wrong += [number for number in numbers(line) if not matches(number, values)]
        if wrong:
            faults.append(f"not in {block.sources.strip()[:60]}: {', '.join(wrong)} in {block.text.strip()[:60]!r}")
    assert not faults, "\n" + "\n".join(faults)


def test_tables_of_results_are_made_of_their_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import alignment_measures
    import alignment_real
    import caption_demographics
    import leaderboard
    import t2medi

    def of(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    runs = of("alignment")["runs"]
    made = {
        "alignment": alignment_measures.tables(runs, alignment_measures.against_before(runs)),
        "t2medi": t2medi._table(of("t2medi")["runs"]),
        "caption_demographics": caption_demographics._table(of("caption_demographics")),
    }
    for world in alignment_real.WORLDS.values():
        name = f"alignment_real_{world.folder}"
        made[name] = alignment_real._table(world, of(name)["runs"])
    for path in RESULTS.glob("fair_training_*.json"):
        found = of(path.stem)
        made[path.stem] = leaderboard.tables(found["runs"], found["against_uniform"], found["equal_laws"])
    assert len(made) >= 9
    for name, table in made.items():
        assert (RESULTS / f"{name}.md").read_text() == table, f"{name}.md is not what its JSON says; run the benchmark's script again"


def test_a_wrong_number_or_one_without_a_source_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('{"runs": [{"men": 0.4871}, {"men": 0.52}], "n": 4000}')
    (tmp_path / "a.md").write_text("| recipe (seeds) | men |\n|---|---|\n| kl (3) | 0.785 ± 0.055 |\n| own (3) | 0.511 ± 0.016 |\n")
    monkeypatch.setattr(f"{__name__}.RESULTS", tmp_path)
    assert allowed("a.json runs/*/men; given: 7, 20 %") == [0.4871, 0.52, 7, 0.2]
    assert allowed("a.json mean(runs/*/men), sd(runs/*/men)") == [pytest.approx(0.50355), pytest.approx(0.0232638)]
    assert allowed("a.json ratio(runs/0/men : runs/1/men)") == [pytest.approx(0.4871 / 0.52)]
    assert allowed("a.md kl") == [3, 0.785, 0.055] and allowed("a.md", first_cell="own") == [3, 0.511, 0.016]
    assert matches(".49", [0.4871]) and matches("49%", [0.4871]) and not matches(".48", [0.4871]) and not matches(".487", [0.4881])
    assert allowed("[sex] a.json n; [age] a.md kl", "by sex") == [4000] and not matches("1", [0.7, 1.2])
    assert matches("4,000", [4000.0]) and matches("−.3", [-0.31]) and not matches(".3", [-0.31])
    with pytest.raises(AssertionError, match="nothing at runs/0/women"):
        allowed("a.json runs/0/women")
    with pytest.raises(AssertionError, match="no row transport"):
        allowed("a.md transport")
    reporting = Block("| men | .5 |", None), Block("Measured: .5", None), Block("It is .5", None, "## What was measured")
    assert all(map(must_have_sources, reporting))
    silent = Block("| steps | 1000 |", None), Block("It is .5", None), Block("95 % intervals, measured", None)
    assert not any(map(must_have_sources, silent))
    found = list(blocks("One .5 measured.\n\n<!-- figures: a.json n -->\n\n| a | .7 |\n\nLast\n<!-- figures: a.md own -->"))
    assert [(block.text.strip(), (block.sources or "").strip()) for block in found] == [
        ("One .5 measured.", "a.json n"), ("| a | .7 |", ""), ("Last", "a.md own"),
    ]  # fmt: skip
    printed = numbers("see `x.5` [it](a-2.json) 1,537 of 2,000, .98 [.26, 1.59], 3 to 12 %, ±.013, -0.3, x86, 512x512, (arXiv 2412.20374)")
    assert printed == ["1,537", "2,000", ".98", ".26", "1.59", "3%", "12%", ".013", "-0.3"]
