"""`push_to_hub` of `DelstTrainer`: complete checkpoints (model, processor, code, record and card), one commit per save."""

import copy
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from transformers.trainer_utils import HubStrategy

from ..hub.card import check_filled, model_card
from ..hub.checkpoint_folder import save_checkpoint_folder
from ..hub.publish import MODEL_MARKS, push_model
from ..hub.push import open_target, user_of

logger = logging.getLogger(__name__)

NOT_EVALUATED = (
    "Not evaluated yet. `delst evaluate MODEL DATASET --output results.json`, then `delst push` with `--results`."
)


def make_repository(trainer: Any, token: str | None = None, private: bool | None = None) -> None:
    """Make the repository before the first step, after checking that the card has no gaps.

    Args:
        trainer: A `DelstTrainer`.
        token: By default ``hub_token``, or that of `hf auth login`.
        private: By default ``hub_private_repo``.

    Raises:
        ValueError: Without a processor, or if the card lacks facts (see `hub.facts.FACTS`).
        OSError: As `push.open_target` says.
    """
    if not trainer.is_world_process_zero():
        return
    if trainer.processor is None:
        raise ValueError("push_to_hub=True pushes the processor too: give processing_class=DelstProcessor(...).")
    args = trainer.args
    token = token or args.hub_token
    name = args.hub_model_id or Path(args.output_dir or "model").absolute().name
    repo_id = name if "/" in name else f"{user_of(name, 'model', token)}/{name}"
    with _workplace(trainer) as folder:
        check_filled(model_card(save_whole(trainer, folder), repo_id, given=_given(trainer)))
    private = args.hub_private_repo if private is None else private
    open_target(repo_id, "model", marks=MODEL_MARKS, private=private, revision=args.hub_revision, token=token)
    trainer.hub_model_id, trainer.push_in_progress = repo_id, None


def push(
    trainer: Any,
    commit_message: str = "End of training",
    token: str | None = None,
    revision: str | None = None,
    folder: Path | None = None,
) -> str | None:
    """Push model, processor, record and card in one commit.

    Args:
        trainer: A `DelstTrainer`.
        commit_message: Title of the commit.
        token: By default ``hub_token``.
        revision: Branch, by default ``hub_revision``.
        folder: A checkpoint folder of this run to push; by default the model is saved as it is now.

    Returns:
        The address of the commit; None on processes other than the first.

    Raises:
        OSError: As `push.push_folder` says.
    """
    if trainer.hub_model_id is None:
        make_repository(trainer, token)
    if not trainer.is_world_process_zero():
        return None
    args = trainer.args
    with _workplace(trainer) as temporary:
        return push_model(
            folder or save_whole(trainer, temporary),
            str(trainer.hub_model_id),
            given=_given(trainer),
            private=bool(args.hub_private_repo),
            revision=revision or args.hub_revision,
            token=token or args.hub_token or get_token(),
            message=commit_message,
        )


def push_checkpoint(trainer: Any) -> None:
    """Push the model as it is at a save; a failure is logged, and the run continues."""
    # With cached features the backbone is absent during the run, under FSDP the weights are sharded: pushed at the end.
    in_pieces = trainer.is_fsdp_enabled or trainer.args.cache_features
    if trainer.args.hub_strategy == HubStrategy.END or in_pieces:
        return
    step = trainer.state.global_step
    try:
        trainer.push_to_hub(f"Training in progress, step {step}")
    except OSError as error:  # a run of hours must not end because the network fails
        logger.warning("Step %d was not pushed; the run continues. %s", step, error)


@contextmanager
def _workplace(trainer: Any) -> Iterator[Path]:
    """Provide a hidden folder in the output of the run; if a push is killed, the next one removes what it left there."""
    folder = Path(trainer.args.output_dir or ".") / ".push"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_whole(trainer: Any, folder: Path) -> Path:
    """Save the model as it is now, LoRA merged, as ``folder/model``."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.args.lora and model.config.save_backbone:
        from .lora import merge_lora

        model = merge_lora(copy.deepcopy(model))
    return save_checkpoint_folder(folder / "model", model, trainer.processor, trainer.record())


def _given(trainer: Any) -> dict[str, str]:
    given, state = {"results": NOT_EVALUATED}, trainer.known_state()
    if not any("train_runtime" in row for row in state.log_history):
        given["training_time"] = f"in training, step {state.global_step} of {state.max_steps}"
    return {**given, **trainer.card_facts}
