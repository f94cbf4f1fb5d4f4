"""Checkpoints saved without their backbone: heads and, if any, LoRA, with the id and fingerprint of the backbone.

For backbones that are gated, or whose license forbids republishing. Loading fetches the backbone from its source, or from a
local folder, and refuses one whose weights are not those that the heads were trained on.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .vision_delst import belongs_to_pooler, read_vision_model

BACKBONE = "vision_model."
# Arguments of from_pretrained that locate a checkpoint; the last three also apply to its backbone.
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
    """Load a checkpoint saved with or without its backbone; ``from_pretrained`` of the DELST models passes its arguments here.

    Args:
        model_class: Class of the model to load.
        load: transformers' own ``from_pretrained`` of that class.
    """
    hub_kwargs = {k: kwargs[k] for k in _HUB_ARGUMENTS if k in kwargs}
    if isinstance(folder, str | os.PathLike) and not hub_kwargs.get("subfolder"):
        _refuse_run_or_dataset(os.fspath(folder))
    saved = {} if folder is None else PreTrainedConfig.get_config_dict(folder, **hub_kwargs)[0]
    if (kind := saved.get("model_type", "delst")) != "delst":
        raise ValueError(
            f"{folder} is a model of the kind {kind!r}, not a DELST checkpoint. To make one with it as the backbone: "
            f"DelstModel.from_vision_gene_pretrained({str(folder)!r}, gene_config={{'num_genes': N}})."
        )
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
    own = load_file(file)
    kwargs = {key: value for key, value in kwargs.items() if key not in _HUB_ARGUMENTS}
    state = join_backbone(own, backbone)
    lora, vision = (
        {name.split(BACKBONE, 1)[1]: tensor for name, tensor in weights.items() if BACKBONE in name}
        for weights in (own, state)
    )
    # Kept, so that the model can be saved without its backbone again: with a head on it, or trained further.
    joined = (tensor_fingerprint(vision, config.vision_pooling), lora) if lora else None
    loaded = load(None, *model_args, config=config, **{**kwargs, "state_dict": state, "output_loading_info": True})
    if joined is not None:
        loaded[0].base_model.vision_model.joined_lora = joined
    return _checked(loaded, folder, saved, kwargs)


def _refuse_run_or_dataset(folder: str) -> None:
    """Refuse a folder of ours that holds no model; transformers would only say that its config.json is missing."""
    model, told = os.path.join(folder, "model"), ""
    if os.path.isfile(os.path.join(model, "config.json")):
        told = f"is the folder of a run; its model is {model}. Give that"
    elif os.path.isdir(os.path.join(folder, "spots")):
        told = "is a dataset folder. Give the folder of a checkpoint (OUTPUT_DIR/model), or its id on the Hub"
    if told and not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder} {told}.")


def _checked(loaded: Any, folder: Any, saved: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what was loaded, after checking that every weight of it comes from the checkpoint."""
    model, info = loaded
    if folder is not None:
        check_loaded(model, info, str(folder), saved.get("architectures"))
    return (model, info) if kwargs.get("output_loading_info") else model


def check_loaded(model: Any, info: Mapping[str, Any], folder: str, architectures: Any = None) -> None:
    """Refuse a model whose weights do not match its checkpoint: transformers initialises missing ones at random.

    Args:
        model: The model.
        info: Loading info of ``from_pretrained``.
        folder: The checkpoint, for messages.
        architectures: Classes that it was saved from. When another class loads it, a task head may be missing or left over.

    Raises:
        ValueError: If weights are missing, unknown or out of range; the message names them.
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
                f"{folder} {what} weights: {', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)} ({len(wrong)} in all). Its "
                "weights file does not belong to its config.json. Copy the checkpoint again from where it was trained."
            )
    for name, (low, high) in base.scalar_bounds().items():
        value = getattr(base, name)
        if value.device.type != "meta" and not low - 1e-3 <= value.item() <= high + 1e-3:
            raise ValueError(
                f"{folder} holds {name} = {value.item():g}, outside the range {low:g} to {high:g} that training keeps it in. "
                "Its weights are damaged or were edited. Copy the checkpoint again from where it was trained."
            )


def describe_source(vision: str | os.PathLike, backbone: PreTrainedModel, pooling: str) -> dict[str, Any]:
    """Return the source and the fingerprint of a backbone, the value of ``config.vision_source``.

    Args:
        vision: Hub id or local folder that it was loaded from; only the name of a folder is kept.
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
    """Return the SHA-256 (16 hex digits) of the shape and float32 bytes of every weight that is used.

    Names are left out, because transformers renames the parameters of backbones between versions. An unused pooler is
    left out, because a checkpoint without one gets another random one on each load.
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
    """Return the backbone's own weights under their plain names, with or without LoRA around its layers."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in backbone.state_dict().items()
        if ".lora_" not in name
    }


def weights_without_backbone(model: Any) -> dict[str, Tensor]:
    """Return the weights of a checkpoint without its backbone: all others, and LoRA with its scale multiplied in.

    LoRA that the model was loaded with, which is part of its weights since, is returned too.

    Raises:
        ValueError: If the backbone could not be fetched again unchanged.
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
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    for name, before in _joined_lora(model.base_model.vision_model)[1].items():
        key = f"{prefix}{BACKBONE}{name}"
        # The sum of two updates is one of both ranks.
        parts = [own[key], before.to(own[key])] if key in own else [before]
        own[key] = torch.cat(parts, dim=0 if ".lora_A." in name else 1)
    return own


def _joined_lora(backbone: Any) -> tuple[str, dict[str, Tensor]]:
    """Return the fingerprint of a backbone as it was loaded with LoRA, and that LoRA; ("", {}) where it had none."""
    found: tuple[str, dict[str, Tensor]] = getattr(backbone, "joined_lora", ("", {}))
    return found


def check_can_be_left_out(config: Any, backbone: nn.Module) -> None:
    """Refuse to leave out a backbone that could not be fetched again unchanged.

    Raises:
        ValueError: If it has no source, or its weights have changed since it was loaded.
    """
    source = config.vision_source
    if not source:
        raise ValueError(
            "save_backbone=False, but this backbone was not loaded from a folder or the Hub, so it could not be fetched again. "
            "Build the model with DelstModel.from_vision_gene_pretrained(ID_OR_FOLDER, ...), or save the complete model "
            "(save_backbone=True)."
        )
    found = tensor_fingerprint(backbone_weights(backbone), config.vision_pooling)
    if found not in (source["fingerprint"], _joined_lora(backbone)[0]):
        raise ValueError(
            f"save_backbone=False, but the backbone's weights (fingerprint {found}) are no longer those of {source['id']!r} "
            f"({source['fingerprint']}): they were trained, merged with LoRA or cast. Train with freeze_vision or lora, or "
            "save the complete model (save_backbone=True) if the backbone's license allows it."
        )


def join_backbone(own: dict[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a complete model.

    Args:
        own: Result of `weights_without_backbone`.
        backbone: Weights of the backbone; LoRA is added to them.

    Raises:
        ValueError: If LoRA belongs to layers that the backbone does not have.
    """
    # A model with a task head holds the DELST model under a prefix.
    prefix = next(name.removesuffix("logit_scale") for name in own if name.endswith("logit_scale"))
    state = {f"{prefix}{BACKBONE}{name}": tensor for name, tensor in backbone.items()}
    for name in own:
        layer, is_lora, _ = name.partition(".lora_A.")
        if is_lora:
            if f"{layer}.weight" not in state:
                raise ValueError(
                    f"The checkpoint has LoRA for {layer!r}, which the backbone does not have here: this version of "
                    "transformers names it otherwise. Install the version named in training.json of the checkpoint."
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
    """Return the weights of the backbone that a checkpoint was saved without, after checking their fingerprint.

    Args:
        folder: The checkpoint, for messages.
        config: Its configuration.
        vision_path: As in `load_checkpoint`.
        vision_kwargs: As in `load_checkpoint`.
        hub_kwargs: Hub arguments of the checkpoint; its cache, token and local_files_only also apply to the backbone.

    Raises:
        OSError: If the backbone cannot be reached.
        ValueError: If its weights are not those that the checkpoint was trained on.
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
            "\nIf it is gated, ask for access on its Hub page and log in with `hf auth login`. Without a network, or with a "
            f"copy on this machine, give its folder: from_pretrained({os.fspath(folder)!r}, vision_path=FOLDER)."
        ) from error
    found = tensor_fingerprint(weights, config.vision_pooling)
    if found != source["fingerprint"]:
        raise ValueError(
            f"The backbone at {place!r} (fingerprint {found}) is not the one that this checkpoint was trained on: "
            f"{source['id']!r}{' at revision ' + source['revision'] if source['revision'] else ''} ({source['fingerprint']}). "
            "The heads would compute nonsense on it. Give the right one with vision_path=FOLDER."
        )
    return weights


__all__ = ["describe_source", "load_checkpoint", "weights_without_backbone"]
