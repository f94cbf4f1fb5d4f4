"""A Trainer whose pushes are whole checkpoints: model, processor, code, record and card, one commit at each save."""

import copy
import logging
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from transformers import Trainer, TrainerState
from transformers.trainer_utils import HubStrategy

from ..hub.card import check_filled, model_card
from ..hub.checkpoint_folder import save_checkpoint_folder
from ..hub.publish import push_model
from ..hub.push import errors_explained, user_of
from ..model.processing_delst import DelstProcessor
from ..record import hardware, hyperparameters, training_record
from .lora import merge_lora

logger = logging.getLogger(__name__)

NOT_EVALUATED = (
    "Not evaluated yet. `delst evaluate MODEL DATASET --output results.json`, then `delst push` with `--results`."
)


class HubTrainer(Trainer):
    """`push_to_hub` of transformers' Trainer for DELST models.

    Attributes:
        processor: Pushed and saved with the model.
        run_facts: What the record of the run says beside arguments and log: slides, dataset, ``data`` (`data.facts`).
        card_facts: Facts of the card by hand (`card_facts.FACTS`), such as ``{"license": "apache-2.0"}``.
    """

    processor: DelstProcessor | None
    run_facts: dict[str, Any]
    card_facts: dict[str, str]
    hub_model_id: Any

    def record(self) -> dict[str, Any]:
        """The record of the run so far, `training.json` of a checkpoint folder."""
        facts = {"hyperparameters": hyperparameters(self.args), "seed": self.args.seed, **self.run_facts}
        return training_record(**facts, hardware=hardware(), log_history=self._state().log_history)

    def _state(self) -> TrainerState:
        # The base class asks for the repository before it has a state.
        return getattr(self, "state", None) or TrainerState()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, once the card is known to have no gaps: all before the first step.

        Args:
            token: By default ``hub_token``, or that of `hf auth login`.
            private: By default ``hub_private_repo``.

        Raises:
            ValueError: Without a processor, or if the card lacks facts (see `card_facts`).
            OSError: As `push.push_folder` says.
        """
        if not self.is_world_process_zero():
            return
        if self.processor is None:
            raise ValueError("push_to_hub=True pushes the processor too: give processing_class=DelstProcessor(...).")
        token = token or self.args.hub_token
        name = self.args.hub_model_id or Path(self.args.output_dir or "model").absolute().name
        repo_id = name if "/" in name else f"{user_of(name, 'model', token)}/{name}"
        with tempfile.TemporaryDirectory(prefix="delst-card-") as folder:
            check_filled(model_card(self._save_whole(Path(folder)), repo_id, given=self._given()))
        with errors_explained(repo_id, "model", user_of(repo_id, "model", token)):
            private = self.args.hub_private_repo if private is None else private
            HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True)
        self.hub_model_id, self.push_in_progress = repo_id, None

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        folder: Path | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Push model, processor, record and card in one commit.

        Args:
            commit_message: Its title.
            blocking: Has no effect: the push is over when this returns.
            token: By default ``hub_token``.
            revision: Branch, by default ``hub_revision``.
            folder: A checkpoint folder of this run to push; by default the model is saved as it is now.
            **kwargs: Not used.

        Returns:
            The address of the commit; None on processes other than the first.

        Raises:
            OSError: As `push.push_folder` says.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        if not self.is_world_process_zero():
            return None
        with tempfile.TemporaryDirectory(prefix="delst-push-") as temporary:
            return push_model(
                folder or self._save_whole(Path(temporary)),
                str(self.hub_model_id),
                given=self._given(),
                private=bool(self.args.hub_private_repo),
                revision=revision or self.args.hub_revision,
                token=token or self.args.hub_token or get_token(),
                message=commit_message,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # With cached features the backbone is away during the run, under FSDP the weights are in pieces: pushed at the end.
        in_pieces = self.is_fsdp_enabled or self.args.cache_features  # type: ignore[attr-defined]
        if self.args.hub_strategy == HubStrategy.END or in_pieces:
            return
        try:
            self.push_to_hub(f"Training in progress, step {self.state.global_step}")
        except OSError as error:  # a run of hours must not end because the network does
            logger.warning("Step %d was not pushed, the run goes on. %s", self.state.global_step, error)

    def _save_whole(self, folder: Path) -> Path:
        model: Any = self.accelerator.unwrap_model(self.model)
        if self.args.lora and model.config.save_backbone:  # type: ignore[attr-defined]
            model = merge_lora(copy.deepcopy(model))
        return save_checkpoint_folder(folder / "model", model, self.processor, self.record())  # type: ignore[arg-type]

    def _given(self) -> dict[str, str]:
        given, state = {"results": NOT_EVALUATED}, self._state()
        if not any("train_runtime" in row for row in state.log_history):
            given["training_time"] = f"in training, step {state.global_step} of {state.max_steps}"
        return {**given, **self.card_facts}
