"""Push a checkpoint and the dataset it was trained on to the Hub, and load both from there as any user would.

    python examples/push_to_hub.py runs/toy/pretrain/model runs/toy/data runs/toy/results.json me/delst-toy

Needs `hf auth login` with a token that may write. To try it without the internet, `python tests/hub_server.py --port 8765`
prints the environment to run it in. The card is written from the records of the run; facts that no record holds are given
below, and a card with gaps is not pushed. From the shell: `delst card`, `delst push`, `delst push --dataset`.
"""

import sys

from datasets import load_dataset
from transformers import AutoModel, AutoProcessor

from delst_hf.evaluation.results import read_results
from delst_hf.hub.publish import push_dataset, push_model

model_folder, dataset, results, repo_id = sys.argv[1:]
dataset_id = f"{repo_id}-data"
print(push_dataset(dataset, dataset_id))

facts = {
    "license": "apache-2.0",  # of the weights: the stricter of the licenses of backbone and data
    "dataset": f"synthetic slides of `delst prepare toy` ({dataset_id})",
    "dataset_license": "cc0-1.0",
}
print(push_model(model_folder, repo_id, results=read_results(results), given=facts))

# trust_remote_code runs the code that lies beside the weights, so that this package need not be installed.
model = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
spots = load_dataset(dataset_id, split="train", streaming=True)
patch = next(iter(spots))["image"]
embedding = model.get_image_features(**processor(images=patch, return_tensors="pt")).pooler_output
print(f"{repo_id} embeds a patch of {dataset_id}: {tuple(embedding.shape)}")
