"""docs/hub.md from its top to its end, in one process that is a client of the tests' own Hub."""

from pathlib import Path

import docs_files
from hub_client import run_client
from hub_server import HubServer

TESTS = Path(__file__).parent
PAGE = f"""
import os, sys, tempfile
sys.path.insert(0, {str(TESTS)!r})
os.environ["ACCELERATE_USE_CPU"] = "true"
from pathlib import Path
from shell_blocks import blocks_of, commands_of, run

blocks = blocks_of("docs/hub.md")
commands = commands_of(blocks, Path.cwd())
for block in blocks:
    if block.kind == "python":
        exec(compile(block.code, "docs/hub.md", "exec"), {{"__name__": "__main__"}})
    for command in (one for one in commands if one.block is block):
        # The Hub is there already, at a port of its own.
        if command.words[1] != "tests/hub_server.py":
            os.environ["HF_TOKEN"] = command.token
            print("$", *command.words, flush=True)
            run(command)
"""


def test_every_block_runs_as_pasted(tiny_backbone, tmp_path):
    docs_files.write_runs(tmp_path, tiny_backbone)
    docs_files.write_results(tmp_path)
    for name in ("training", "tests"):
        (tmp_path / name).symlink_to(TESTS.parent / name)
    with HubServer() as server:
        server.create("guest/vit", gated=True)
        printed = run_client(server, tmp_path, PAGE).stdout
        pushed = {name for _, name in server.repositories}
    assert pushed == {
        "guest/vit", "me/delst-toy", "me/delst-toy-run", "me/delst-heads", "me/toy-slides", "me/gene_pearson"
    }  # fmt: skip
    assert printed.count("\nDelstModel") == 3 and "toy_A1" in printed and "gene_pearson" in printed
