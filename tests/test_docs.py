"""What the documentation shows must run, and its tables must be fresh."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & set(path.parts)),
]
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_code_blocks_run(page, tiny_model, tmp_path):
    """The blocks of a page run in order in one folder, neighbouring python ones as one program."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KEXUE_MODEL": str(tiny_model),
        "KEXUE_OFFLINE": "1",
    }
    python = []
    for number, (language, code) in enumerate(blocks_of(page)):
        if language == "sh":
            _run([*_python(python), f"bash -e <<'BLOCK'\n{code}BLOCK"], tmp_path, environment, f"block {number}")
            python = []
        else:
            python.append(code)
    _run(_python(python), tmp_path, environment, "python blocks")


@pytest.mark.slow
@pytest.mark.multilingual
def test_the_first_chinese_example_gives_right_answers_with_the_default_model(tmp_path):
    """The commands as printed, without a model named; then the answers of its questions, as JSON."""
    environment = {key: value for key, value in os.environ.items() if key != "KEXUE_MODEL"} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KEXUE_OFFLINE": "1",
        "KEXUE_CACHE": str(tmp_path / "cache"),
    }
    (shell, block), *_, (_, program) = blocks_of(ROOT / "README.zh-CN.md")[:3]
    assert shell == "sh"
    _run([f"bash -e <<'BLOCK'\n{block}BLOCK"], tmp_path, environment, "the first example")
    expected = {"退款几天到账": "退货要多久?", "忘记登录密码": "怎么修改密码?"}
    assert all(f'kexue search faq.kx "{question}"' in block for question in expected)
    for question, answer in expected.items():
        command = ["kexue", "search", "faq.kx", question, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["results"][0]["document"]["text"] == answer
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].endswith("退货要多久?")


def _python(blocks: list[str]) -> list[str]:
    if not blocks:
        return []
    return ["python -W ignore - <<'BLOCK'\n" + "\n".join(blocks) + "\nBLOCK"]


def _run(commands: list[str], folder: Path, environment: dict[str, str], what: str) -> None:
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{what} failed:\n{command}\n{done.stdout}\n{done.stderr}"


def test_tables_are_fresh():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_commands_stand_on_the_first_screen():
    for name in ("README.md", "README.zh-CN.md"):
        head = "\n".join((ROOT / name).read_text(encoding="utf-8").splitlines()[:30])
        assert "make demo" in head
        assert "make test" in head
