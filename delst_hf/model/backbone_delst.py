"""Checkpoints without their backbone: heads, and LoRA where there is one, beside the id and the fingerprint of the rest.

For backbones that are gated, or whose license forbids to republish them. Loading fetches the backbone from where it came from,
or from a local folder, and refuses one whose weights are not those that the heads were trained on.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .vision_delst import belongs_to_pooler, read_vision_model

BACKBONE = "vision_model."
# Arguments of from_pretrained that say where a checkpoint lies; the last three hold for its backbone as well.
_HUB_ARGUMENTS = ("revision", "subfolder", "force_download", "cache_dir", "local_files_only", "token")


def load_checkpoint(
    model_class: Any,
    load: Callable[..., Any],
    folder: Any,
    *model_args: Any,
    config: Any = None,
    vision_path: str | os.PathLike | None = None,
    vision_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint, with its backbone or without: ``from_pretrained`` of the DELST models, whose arguments these are.

    Args:
        model_class: What is loaded.
        load: transformers' own ``from_pretrained`` of that class.
    """
    hub_kwargs = {k: kwargs[k] for k in _HUB_ARGUMENTS if k in kwargs}
    saved = {} if folder is None else PreTrainedConfig.get_config_dict(folder, **hub_kwargs)[0]
    if saved.get("save_backbone", True):
        if vision_path is not None:
            raise ValueError(
                f"vision_path={os.fspath(vision_path)!r}, but {str(folder)!r} holds its backbone. Leave vision_path out."
            )
        loaded = load(folder, *model_args, config=config, **{**kwargs, "output_loading_info": True})
        return _checked(loaded, folder, saved, kwargs)
    if not isinstance(config, PreTrainedConfig):
        place, config_class = config or folder, model_class.config_class
        config, kwargs = config_class.from_pretrained(place, return_unused_kwargs=True, **kwargs)
    backbone = fetch_backbone(folder, config, vision_path, vision_kwargs or {}, hub_kwargs)
    file: Any = cached_file(folder, "model.safetensors", **hub_kwargs)
    state = join_backbone(load_file(file), backbone)
    kwargs = {key: value for key, value in kwargs.items() if key not in _HUB_ARGUMENTS}
    options = {**kwargs, "state_dict": state, "output_loading_info": True}
    return _checked(load(None, *model_args, config=config, **options), folder, saved, kwargs)


def _checked(loaded: Any, folder: Any, saved: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """Give back what was loaded, once every weight of it is known to come from the checkpoint."""
    model, info = loaded
    if folder is not None:
        check_loaded(model, info, str(folder), saved.get("architectures"))
    return (model, info) if kwargs.get("output_loading_info") else model


def check_loaded(model: Any, info: Mapping[str, Any], folder: str, architectures: Any = None) -> None:
    """Refuse a model whose weights are not all those of its checkpoint: transformers draws missing ones at random.

    Args:
        model: The model.
        info: Loading info of ``from_pretrained``.
        folder: The checkpoint, for messages.
        architectures: Classes that it was saved from. Of another class the task head may be missing, or left over.

    Raises:
        ValueError: Naming the weights.
    """
    base, other_head = model.base_model, type(model).__name__ not in (architectures or ())
    own = {name for name, _ in [*base.named_children(), *base.named_parameters(recurse=False)]}

    def belongs_to_base(name: str) -> bool:
        return name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in own

    def is_unread_pooler(name: str) -> bool:
        is_read = model.config.vision_pooling in ("auto", "pooler")
        return BACKBONE in name and not is_read and belongs_to_pooler(name.split(BACKBONE, 1)[1])

    for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds unknown")):
        wrong = [
            name for name in sorted(info.get(kind) or ())
            if not is_unread_pooler(name) and (belongs_to_base(name) or not other_head)
        ]  # fmt: skip
        if wrong:
            raise ValueError(
                f"{folder} {what} weights: {', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)} ({len(wrong)} in all). Its file "
                "of weights is not the one that belongs to its config.json. Copy the checkpoint anew from where it was made."
            )
    for name, (low, high) in base.scalar_bounds().items():
        value = getattr(base, name)
        if value.device.type != "meta" and not low - 1e-3 <= value.item() <= high + 1e-3:
            raise ValueError(
                f"{folder} holds {name} = {value.item():g}, outside of the {low:g} to {high:g} in which training keeps it. Its "
                "weights are damaged, or were changed by hand. Copy the checkpoint again from where it was trained."
            )


def describe_source(vision: str | os.PathLike, backbone: PreTrainedModel, pooling: str) -> dict[str, Any]:
    """Tell where a backbone came from and what its weights were: ``config.vision_source``.

    Args:
        vision: Hub id or local folder that it was loaded from; of a folder only the name is kept.
        backbone: The backbone as it was loaded.
        pooling: ``config.vision_pooling``.

    Returns:
        ``id``, ``revision`` (the commit, None for a local folder) and ``fingerprint``.
    """
    path = os.fspath(vision)
    revision = None if os.path.isdir(path) else getattr(backbone.config, "_commit_hash", None)
    name = os.path.basename(os.path.abspath(path)) if os.path.isdir(path) else path
    return {"id": name, "revision": revision, "fingerprint": tensor_fingerprint(backbone_weights(backbone), pooling)}


def tensor_fingerprint(weights: Mapping[str, Tensor], pooling: str) -> str:
    """Return SHA-256 (16 hex digits) over shape and float32 bytes of every weight that is used.

    Names are left out: transformers renames the parameters of backbones from one version to the next. So is an
    unused pooler, which is initialised at random anew at each load of a checkpoint without one.
    """
    digests = []
    for name, tensor in weights.items():
        if pooling in ("auto", "pooler") or not belongs_to_pooler(name):
            values = tensor.detach().cpu().float().contiguous()
            digest = hashlib.sha256(str(tuple(values.shape)).encode())
            digest.update(values.numpy().reshape(-1).view("uint8").data)
            digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def backbone_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's own weights under their plain names, whether or not LoRA lies around them."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in backbone.state_dict().items()
        if ".lora_" not in name
    }


def weights_without_backbone(model: Any) -> dict[str, Tensor]:
    """Return what a checkpoint without the backbone holds: every other weight, and LoRA with its scale multiplied in.

    Raises:
        ValueError: If the backbone could not be fetched again as it is.
    """
    check_can_be_left_out(model.config, model.base_model.vision_model)
    own = {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if BACKBONE not in name or ".lora_A." in name or ".lora_B." in name
    }
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            for adapter, scale in layer.scaling.items():
                own[f"{name}.lora_A.weight"] = own.pop(f"{name}.lora_A.{adapter}.weight")
                own[f"{name}.lora_B.weight"] = own.pop(f"{name}.lora_B.{adapter}.weight") * scale
    return own


def check_can_be_left_out(config: Any, backbone: nn.Module) -> None:
    """Refuse to leave out a backbone that could not be fetched again as it is.

    Raises:
        ValueError: If it came from nowhere, or its weights were changed since.
    """
    source = config.vision_source
    if not source:
        raise ValueError(
            "save_backbone=False, but this backbone was not loaded from anywhere, so it could not be fetched again. Build the "
            "model by DelstModel.from_vision_gene_pretrained(ID_OR_FOLDER, ...), or save it whole (save_backbone=True)."
        )
    found = tensor_fingerprint(backbone_weights(backbone), config.vision_pooling)
    if found != source["fingerprint"]:
        raise ValueError(
            f"save_backbone=False, but the backbone's weights (fingerprint {found}) are no longer those of {source['id']!r} "
            f"({source['fingerprint']}): they were trained, merged with LoRA or cast. Train with freeze_vision or lora, or "
            "save the model whole (save_backbone=True) where the backbone's license lets you."
        )


def join_backbone(own: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a whole model.

    Args:
        own: What `weights_without_backbone` gave.
        backbone: Weights of the backbone; LoRA is added to them.

    Raises:
        ValueError: If LoRA lies beside layers that the backbone does not have.
    """
    # A model with a task head holds the DELST model under a name of its own.
    prefix = next(name.removesuffix("logit_scale") for name in own if name.endswith("logit_scale"))
    state = {f"{prefix}{BACKBONE}{name}": tensor for name, tensor in backbone.items()}
    for name in own:
        layer, is_lora, _ = name.partition(".lora_A.")
        if is_lora:
            if f"{layer}.weight" not in state:
                raise ValueError(
                    f"LoRA lies beside {layer!r}, which the backbone does not have here: transformers names it otherwise in "
                    "this version. Install the version that training.json of the checkpoint names."
                )
            update = own[f"{layer}.lora_B.weight"] @ own[name]
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + update
    return state | {name: tensor for name, tensor in own.items() if ".lora_" not in name}


def fetch_backbone(
    folder: Any,
    config: Any,
    vision_path: str | os.PathLike | None,
    vision_kwargs: dict[str, Any],
    hub_kwargs: dict[str, Any],
) -> dict[str, Tensor]:
    """Return weights of the backbone that a checkpoint was saved without, known to be the right ones.

    Args:
        folder: The checkpoint, for messages.
        config: Its configuration.
        vision_path: As in `load_checkpoint`.
        vision_kwargs: The same.
        hub_kwargs: Those of the checkpoint, of which the backbone takes token and cache.

    Raises:
        OSError: If the backbone cannot be reached.
        ValueError: If it is another one.
    """
    source = config.vision_source
    place = source["id"] if vision_path is None else os.fspath(vision_path)
    options = {key: hub_kwargs[key] for key in _HUB_ARGUMENTS[-3:] if key in hub_kwargs} | vision_kwargs
    if vision_path is None and source["revision"]:
        options.setdefault("revision", source["revision"])
    try:
        weights = backbone_weights(read_vision_model(place, options)[0])
    except OSError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"This checkpoint was saved without its backbone {source['id']!r}, which cannot be loaded from {place!r}: {reason}"
            "\nIf it is gated, ask for access on its page of the Hub and log in by `hf auth login`. If you have no network, or "
            f"hold a copy already, give its folder: from_pretrained({os.fspath(folder)!r}, vision_path=FOLDER)."
        ) from error
    found = tensor_fingerprint(weights, config.vision_pooling)
    if found != source["fingerprint"]:
        raise ValueError(
            f"The backbone at {place!r} (fingerprint {found}) is not the one that this checkpoint was trained on: "
            f"{source['id']!r}{' at revision ' + source['revision'] if source['revision'] else ''} ({source['fingerprint']}). "
            "Its heads would compute nonsense on it. Give that one by vision_path=FOLDER."
        )
    return weights


__all__ = ["describe_source", "load_checkpoint", "weights_without_backbone"]
