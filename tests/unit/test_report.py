"""Reports: what is in a block comes out in both forms, and nothing in it is taken for markup."""

import re
from pathlib import Path

from lm2.eval.report import Command, Heading, Picture, Table, Text, to_html, to_markdown

NASTY = "a|b <script>*x*</script> [l](u) `c` _d_ #e & \\"
BLOCKS = [Heading(NASTY, 1), Text(NASTY), Command("lm2 x --set 'a=<b>'"), Table(["m", NASTY], [[NASTY, "1.0"]])]


def test_names_are_no_markup_in_html(tmp_path: Path) -> None:
    page = to_html(BLOCKS, tmp_path)
    assert "<script" not in page
    escaped = "a|b &lt;script&gt;*x*&lt;/script&gt; [l](u) `c` _d_ #e &amp; \\"
    assert page.count(escaped) == 5
    assert f"<h1>{escaped}</h1>" in page
    assert '<th scope="row">' in page
    assert "lm2 x --set &#x27;a=&lt;b&gt;&#x27;" in page


def test_names_are_no_markup_in_markdown() -> None:
    text = to_markdown(BLOCKS)
    title, paragraph, command, table = text.strip().split("\n\n")
    for line in (title.removeprefix("# "), paragraph):
        assert not re.search(r"(?<!\\)[|<>*\[\]`_#]", line.replace("\\\\", ""))
    assert command == "```\nlm2 x --set 'a=<b>'\n```"
    for line in table.splitlines():
        assert len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) == 3


def test_lines_in_a_name_do_not_break_a_table() -> None:
    assert to_markdown([Table(["a", "b"], [["x\ny", "1"]])]).splitlines()[-1] == "| x y | 1 |"


def test_pictures_are_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG data")
    blocks = [Heading("t", 1), Picture("p.png", 'say "this"')]
    assert '<img alt="say &quot;this&quot;" src="data:image/png;base64,iVBORyBkYXRh">' in to_html(blocks, tmp_path)
    assert '![say "this"](p.png)' in to_markdown(blocks)
