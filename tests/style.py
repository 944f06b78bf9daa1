"""Measure the language of the documentation and of the package.

``python tests/style.py`` prints every page with its number of words, and every fault with its place; ``python
tests/style.py PATH ...`` does so for these files and folders only. It exits with 1 if there is a fault.

Pages: everything outside code is read, computed tables included. Python files: docstrings, comments, string literals
of at least four words, and names. The bounds are those of two projects whose text is easy to read, PyKEEN and PyTorch
Geometric.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = 30_000
"""At most so many words in all pages: text, tables and code, what is computed too."""
LONGEST = 35
"""Words of a sentence."""
RATES = {"that": 6.5, "where": 1.6}
"""Occurrences per 1,000 words: the higher figure of the two projects."""
UNITS = (
    "epoch direction run utterance turn conversation modality file process seed trial step class label speaker row "
    "layer model corpus word line page split second minute task metric pair recording clip frame message architecture "
    "table node"
)
_UNIT = "|".join(UNITS.split())
_SMALL = "of|in|for|is|was|with|to|at|on|by|from|and|or|as|than|per|like|not|be|only|into|such|quite|that|without|has"
REFUSED = {
    rf"\b(?:an?|one|two|three|each|\d+|numbers|units|rows|words|vectors|values|files|lines|folders|heads|seconds|times)"
    rf" (?:(?!(?:{_SMALL})\b)[\w-]+ )?an? (?:{_UNIT})\b": "per",
    r"\banew\b": "again",
    r"\bbeside\b": "next to, with, compared with",
    r"\balone\b": "only, on its own",
    r"\b(?:stands?|lies|lie)\b(?! for\b|-ins?\b)": "is, is in, is listed in",
    r"\b(?:speaks?|speaking) of\b": "applies to, describes",
    r"\bhears?\b": "attends to, receives from",
    r"\blooks? at\b|\blooking at\b": "attends to, reads, checks",
    r"\bwith the eyes of\b": "attends to",
    r"\bat most so\b|\bso long where\b": "estimated time left",
    r"\b(?:be|been) had\b": "is not available, cannot be created",
    r"(?<!there )\b(?:is|are) no (?!longer\b|more\b|less\b|better\b|worse\b)\w+": "is not a ...",
    r"\b(?:is|are) none (?:that|of)\b": "is not a ...",
    r"\bbelow the line\b": "sample standard deviation",
    r"\bthe ones that\b|\bforetells?\b|\bforetold\b": "predict",
    r"\bleaves?\b(?: \w+){1,4} out\b": "without",
    r"\bshall\b": "is to, must",
    r"\bNever (?:does|is|do|are|has)\b": "no inversion",
    r"\bas (?:it|they) (?:comes?|stands?)\b": "unchanged",
    r"\bno (?:\w+ )?whatever\b": "none",
}
"""Patterns of phrases that no page, docstring, comment or message has, and what to write instead."""
NAMES = frozenset(["found", "said", "bend", "way", "apart", "entry", "anew", "beside", "alone", "told"])
"""Names that say nothing: no variable, argument, field or function is called so."""


@dataclass(frozen=True)
class Text:
    """A paragraph, list item, table cell, docstring paragraph, comment or message, and the line that it starts on."""

    path: Path
    line: int
    text: str


def words(text: str) -> list[str]:
    """Everything between blanks with a letter or a digit in it."""
    return [word for word in text.split() if re.search(r"\w", word)]


def without_code(text: str) -> str:
    """Inline code is one word; of a link only its text counts."""
    text = re.sub(r"(`+)(.+?)\1", "CODE", text, flags=re.S)
    text = re.sub(r":[\w:]+:CODE", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\$[^$\n]+\$", "FORMULA", text)
    return re.sub(r"https?://\S+", "LINK", text)


def sentences(text: str) -> Iterator[str]:
    for part in re.split(r"(?<=[.!?:;])[\"')*_]*\s+(?=[\"'(*_`]*[A-Z0-9`])|\n\s*\n", text):
        yield " ".join(part.split())


_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")


def page_texts(path: Path) -> Iterator[Text]:
    """The paragraphs, list items, headings and table cells of a page."""
    start, lines, fence = 1, list[str](), False

    def text() -> Iterator[Text]:
        if lines:
            yield Text(path, start, " ".join(lines))
            lines.clear()

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith(("```", "~~~", "$$")) and line.count("$$") != 2:
            yield from text()
            fence = not fence
        elif fence or line.startswith("<!--") or (re.fullmatch(r"[|:\s-]+", line) and "|" in line):
            continue
        elif not line.strip():
            yield from text()
        elif line.startswith(("|", "#")):
            yield from text()
            yield from (Text(path, number, cell.strip("# ")) for cell in line.split("|") if cell.strip())
        else:
            if _ITEM.match(line):
                yield from text()
            if not lines:
                start = number
            lines.append(_ITEM.sub("", line, count=1))
    yield from text()


_SECTION = re.compile(r"\s*(?:Args|Returns|Raises|Shapes|Attributes|Yields|Examples?|References?|Notes?):\s*$")


def paragraphs(path: Path, line: int, text: str) -> Iterator[Text]:
    """A docstring's paragraphs, list items and arguments; formulas and examples are left out."""
    start, lines, indent, skip = line, list[str](), 0, -1
    for number, row in enumerate(text.expandtabs().splitlines(), start=line):
        depth = len(row) - len(row.lstrip())
        if skip >= 0 and (not row.strip() or depth > skip):
            continue
        skip = -1
        directive = re.match(r"\s*\.\. [\w-]+::", row) or row.rstrip().endswith("::")
        starts = _ITEM.match(row) or re.match(r"\s*\*{0,2}[\w.]+(?: \(.*?\))?:\s", row) or depth < indent
        if (not row.strip() or _SECTION.match(row) or directive or starts or ">>>" in row) and lines:
            yield Text(path, start, " ".join(lines))
            lines.clear()
        if directive:
            skip = depth
        if not row.strip() or _SECTION.match(row) or directive or ">>>" in row:
            continue
        if not lines:
            start = number
        indent = depth
        lines.append(_ITEM.sub("", row, count=1).strip())
    if lines:
        yield Text(path, start, " ".join(lines))


def _literal(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "VALUE" for value in node.values)
    return None


def python_texts(path: Path) -> Iterator[Text]:
    """Docstrings, comments, and string literals of at least four words."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    inside: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            inside.add(id(node.value))
            yield from paragraphs(path, node.value.lineno, node.value.value)
        elif isinstance(node, (ast.Constant, ast.JoinedStr)):
            inside.update(id(child) for child in ast.walk(node))
            literal = _literal(node)
            if literal and len(re.findall(r"[A-Za-z]{2,}", literal)) >= 4 and " " in literal.strip():
                yield from paragraphs(path, node.lineno, literal)
    block: list[str] = []
    first = last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield Text(path, first, " ".join(block))
                block = []
            if not block:
                first = token.start[0]
            block.append(token.string.lstrip("#: "))
            last = token.start[0]
    if block:
        yield Text(path, first, " ".join(block))


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Every name that the file binds."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name


def texts(path: Path) -> list[Text]:
    return list(page_texts(path) if path.suffix == ".md" else python_texts(path))


def faults(path: Path) -> Iterator[str]:
    """Long sentences, refused phrases and refused names, each with its place."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if path.name == Path(__file__).name:
        return
    for text in texts(path):
        plain = without_code(text.text)
        for sentence in sentences(plain):
            if len(words(sentence)) > LONGEST:
                yield f"{name}:{text.line}: {len(words(sentence))} words: {sentence[:100]}"
        for pattern, better in REFUSED.items():
            for match in re.finditer(pattern, plain, re.I):
                yield f"{name}:{text.line}: {match[0]!r}: write {better}"
    if path.suffix == ".py":
        for line, bound in names(path):
            if bound in NAMES:
                yield f"{name}:{line}: the name {bound!r} says nothing"


def rates(paths: list[Path]) -> dict[str, float]:
    """Occurrences of the words of :data:`RATES` per 1,000 words."""
    every = [word for path in paths for text in texts(path) for word in words(without_code(text.text))]
    plain = [re.sub(r"\W", "", word).lower() for word in every]
    return {word: 1000 * plain.count(word) / max(len(plain), 1) for word in RATES}


def count(path: Path) -> tuple[int, int]:
    """The words that people wrote into a page (code and tables too), and those of its computed parts."""
    text = path.read_text(encoding="utf-8")
    computed = re.findall(r"<!-- computed: (.+?) -->(.*?)<!-- end: \1 -->", text, re.S)
    inside = sum(len(words(part)) for _, part in computed)
    return len(words(re.sub(r"<!--.*?-->", "", text))) - inside, inside


def pages() -> list[Path]:
    """Every page that people write. The pages of tables (experiments/NAME/README.md) are computed as a whole."""
    own = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md")]
    return [*own, ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def modules() -> list[Path]:
    return sorted((ROOT / "ercfusion").rglob("*.py"))


def main(arguments: list[str]) -> int:
    if arguments:
        chosen = [Path(argument).resolve() for argument in arguments]
        files = [
            file
            for path in chosen
            for file in (sorted(f for f in path.rglob("*") if f.suffix in (".md", ".py")) if path.is_dir() else [path])
        ]
    else:
        files = [*pages(), *modules()]
    written = computed = failures = 0
    for path in files:
        if path.suffix == ".md":
            own, inside = count(path)
            written, computed = written + own, computed + inside
            print(f"{own:6,} words, {inside:6,} computed  {path.relative_to(ROOT)}")
    for path in files:
        for fault in faults(path):
            failures += 1
            print(fault)
    for kind, group in (("pages", ".md"), ("Python files", ".py")):
        if chosen_files := [path for path in files if path.suffix == group]:
            for word, rate in rates(chosen_files).items():
                failures += rate > RATES[word]
                print(f"{kind}: {word!r} {rate:.1f} per 1,000 words (at most {RATES[word]})")
    docs = sum(len(words(text.text)) for path in files if path.suffix == ".py" for text in texts(path))
    print(f"words in docstrings, comments and messages: {docs:,}")
    total = f"{written + computed:,} words (at most {WORDS:,} in all), {computed:,} of them computed"
    print(f"pages: {total}; faults: {failures}")
    return int(failures > 0 or (not arguments and written + computed > WORDS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
