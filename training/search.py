"""Search the learning rates of each geometry, with equal budgets, on validation slides.

    python training/search.py training/configs/her2st.yaml --train_slides C2,C3 --validation_slides C4 \\
        --same_patient_slides C4,C5 --trials 20 --output_dir runs/search
    python training/search.py training/configs/toy.yaml --geometries lorentz,cosine --trials 5 --output_dir runs/search

Options are those of training/pretrain.py, and --geometries, --trials and --search_seed. The mean recall at 10 of both
directions over the validation slides is maximised; test slides are never read. OUTPUT_DIR/search.json holds the best rates of
each geometry: give them to training/pretrain.py. Needs optuna: pip install 'delst-hf[search]'.
"""

import sys

from delst_hf.errors import run_script


def main() -> None:
    # Imported here, so that Ctrl-C during the seconds of importing ends in one line too.
    from delst_hf.pretraining.search import main as run

    run(description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(run_script(main, "search.py"))
