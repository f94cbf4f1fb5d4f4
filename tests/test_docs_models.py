"""docs/models.md: every Python block that a reader can run without a download runs, in order, as pasted."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_blocks_run_as_pasted(tiny_model, tiny_processor, toy_folder, tmp_path, monkeypatch, capsys):
    if not BLOCKS:
        pytest.fail("no block found: the test would be blind")
    (tmp_path / "runs/toy").mkdir(parents=True)
    (tmp_path / "runs/toy/data").symlink_to(toy_folder)
    tiny_model.save_pretrained(tmp_path / "runs/toy/pretrain/model")
    tiny_processor.save_pretrained(tmp_path / "runs/toy/pretrain/model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ran = [block for block in BLOCKS if not block.startswith("# not run here")]
    assert len(ran) == len(BLOCKS) - 1
    for block in ran:
        exec(compile(block, "docs/models.md", "exec"), {"__name__": "__main__"})
    text = capsys.readouterr().out
    assert "2 102" in text and "90 of 100 genes, 90%" in text
    assert "torch.bfloat16 torch.float32 torch.float32" in text and "torch.Size([5, 8])" in text
    assert text.count("(8,)") == 2
