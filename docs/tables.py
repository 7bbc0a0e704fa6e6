"""Write the tables that come from the catalogue and the recorded results; `--check` only tells whether they are fresh.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced.
"""

import re
import sys
from pathlib import Path

from kexue.experiments import Report
from kexue.methods import METHODS, Method

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FILES = [ROOT / "README.md", ROOT / "README.zh-CN.md", DOCS / "methods" / "index.md", DOCS / "results" / "index.md"]
_VERDICT_ZH = {"reproduced": "复现", "partly": "部分复现", "not reproduced": "未复现"}


def results() -> dict[str, Report]:
    """The recorded reports by slug."""
    return {m.slug: Report.load(path) for m in METHODS if (path := DOCS / "results" / m.slug / "report.json").is_file()}


def methods_table(prefix: str, *, chinese: bool = False) -> str:
    """One row an article; `prefix` leads from the file to the docs folder."""
    recorded = results()
    head = ["方法", "文章", "入口", "结论"] if chinese else ["method", "article", "entry points", "claim"]
    rows = []
    for m in METHODS:
        working = m.status == "working"
        name = f"[`{m.slug}`]({prefix}{m.page})" if working else f"`{m.slug}`"
        numbers = ", ".join(f"[{n}](https://kexue.fm/archives/{n})" for n in (m.archive, *m.also))
        rows.append(
            [name, f"{m.title_zh if chinese else m.title} ({numbers})", _entries(m), _claim(m, recorded, chinese)]
        )
    return _markdown(head, rows)


def _entries(m: Method) -> str:
    return ", ".join(f"`{entry.partition(':')[2]}`" for entry in m.objects)


def _claim(m: Method, recorded: dict[str, Report], chinese: bool) -> str:
    if m.slug in recorded:
        verdict = recorded[m.slug].verdict
        return _VERDICT_ZH[verdict] if chinese else verdict
    return "计划中" if chinese else "planned"


def results_table() -> str:
    """Every recorded claim with its figures."""
    rows = []
    for slug, report in results().items():
        for claim in report.claims:
            figures = "; ".join(f"{name} = {report.figures[name].value:.4g}" for name in claim.figures)
            rows.append([f"[{slug}]({slug}/figure.png)", claim.text, claim.verdict, figures])
    return _markdown(["experiment", "claim", "verdict", "figures"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def filled(path: Path) -> str:
    """The file's text with every table renewed."""
    tables = {
        "methods": lambda: methods_table("docs/"),
        "methods-zh": lambda: methods_table("docs/", chinese=True),
        "methods-docs": lambda: methods_table("../"),
        "results": results_table,
    }
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{tables[match[2]]()}\n\n{match[3]}", text)


def main() -> int:
    """Renew the tables, or with `--check` name the stale files and return 1."""
    stale = [path for path in FILES if filled(path) != path.read_text(encoding="utf-8")]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)}: stale; run `make tables`")
        else:
            path.write_text(filled(path), encoding="utf-8")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
