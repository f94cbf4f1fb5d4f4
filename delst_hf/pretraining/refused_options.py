"""Options of transformers' Trainer that a run here would ignore without a word, or whose failure only a library explains."""

from typing import Any

_OF_TEXT = "is for models of text, and changes nothing here"
_OTHER_ORDER = "would give a process other batches than a run here records and resumes"


def check_options(args: Any) -> None:
    """Refuse options that would be ignored, or would end the run late, before anything is opened.

    Args:
        args: Arguments of a run, which their base class has checked.

    Raises:
        ValueError: At the first one that is given; the message says why it cannot be used.
    """
    loader = args.accelerator_config
    refused = {
        "label_smoothing_factor": (args.label_smoothing_factor != 0, _OF_TEXT),
        "neftune_noise_alpha": (args.neftune_noise_alpha is not None, _OF_TEXT),
        "include_num_input_tokens_seen": (args.include_num_input_tokens_seen != "no", _OF_TEXT),
        f"train_sampling_strategy='{args.train_sampling_strategy}'": (
            args.train_sampling_strategy not in ("random", "sequential"),
            _OF_TEXT,
        ),
        "debug='underflow_overflow'": ("underflow_overflow" in args.debug, "cannot read masks, which are no numbers"),
        "dataloader_in_order=False": (
            not args.dataloader_in_order,
            "gives batches as workers finish them, so that no run can be repeated or resumed exactly",
        ),
        "split_batches in accelerator_config": (loader.split_batches, _OTHER_ORDER),
        "dispatch_batches in accelerator_config": (loader.dispatch_batches, _OTHER_ORDER),
        "even_batches=False in accelerator_config": (not loader.even_batches, _OTHER_ORDER),
        "use_seedable_sampler=False in accelerator_config": (not loader.use_seedable_sampler, _OTHER_ORDER),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise ValueError(f"{name} {why}. Leave it out.")
