"""The configurations of training/configs/accelerate, read by accelerate's own classes."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parents[1] / "training" / "configs" / "accelerate"
KINDS = {
    "cpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_loads_as_what_it_is_called(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem]
    written = yaml.safe_load(path.read_text())
    for name, value in written.items():  # accelerate refuses unknown keys; none may be lost either
        if name not in ("distributed_type", "gpu_ids"):
            assert getattr(config, name) == value, name


def test_an_unknown_key_is_refused(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "multi_gpu.yaml").read_text() + "no_such_key: 1\n")
    with pytest.raises(ValueError, match="no_such_key"):
        load_config_from_file(str(wrong))


def launched(name: str):
    """The arguments of `accelerate launch` after it has read the file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "train.py"])
    return _validate_launch_command(arguments)[0]


def test_fsdp_config_makes_the_plugin(monkeypatch):
    arguments = launched("fsdp")
    assert arguments.use_fsdp and arguments.num_processes == 8
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    # By size, FSDP 2 would be asked to wrap lists of layers, and refuse.
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")


def test_deepspeed_config_reaches_the_launcher():
    arguments = launched("deepspeed_zero2")
    assert arguments.use_deepspeed and arguments.zero_stage == 2 and arguments.mixed_precision == "bf16"
