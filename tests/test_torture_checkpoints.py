"""Kills and full disks while a checkpoint folder takes the place of another: it is the old one or the new one, whole."""

import json
import os
import shutil

import pytest
from faults import FaultServer, tally

from delst_hf.hub.checksums import check_checksums
from delst_hf.model.modeling_delst import DelstModel

STEP = 1 if os.environ.get("DELST_TORTURE") else 7


@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_a_checkpoint_that_is_replaced_is_there_and_whole(tmp_path, fault):
    old, folder, number, ended = tmp_path / "old", tmp_path / "run" / "model", 0, False
    with FaultServer("torture_work") as server:
        assert server.run("save_over", str(old), "1") == 0
        while not ended:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(old, folder)
            at = {"kill_at" if fault == "kill" else "full_at": number}
            ended = server.run("save_over", str(folder), "2", **at) == 0
            check_checksums(folder)
            told = json.loads((folder / "training.json").read_text())["number"]
            weights = DelstModel.from_pretrained(folder).logit_scale.item()
            held = weights == float(told) and (told == "2" or not ended)
            tally(f"a checkpoint replaced, {fault}", held, f"event {number}: record {told}, weights {weights}")
            number += STEP
    assert number > 3 * STEP
