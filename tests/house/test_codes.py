"""A LOINC code written in the code is one of the feature table's: a misspelt one would reject its values."""

import ast
import re
from pathlib import Path

import pytest

from schemas.features import BY_LOINC

ROOT = Path(__file__).resolve().parents[2]
LOINC_CODE = re.compile(r"\d{3,5}-\d")
SOURCES = sorted(path for name in ("engines", "worker") for path in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_codes_are_in_the_feature_table(path: Path) -> None:
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    codes = {text for text in texts if isinstance(text, str) and LOINC_CODE.fullmatch(text)}
    assert codes <= BY_LOINC.keys()
