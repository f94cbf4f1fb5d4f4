"""Gene encoders: the set encoder against its formula written out, panels that differ, genes that are added."""

import copy
import math

import pytest
import torch
from torch import nn

from delst_hf import DelstConfig, DelstGeneConfig, DelstGeneFeatureExtractor, DelstGeneModel, DelstModel

GENES, WIDTH, BATCH = 9, 8, 5
ENCODERS = ["linear", "mlp", "set"]


def make_encoder(encoder: str = "set", **changes) -> DelstGeneModel:
    torch.manual_seed(0)
    config = {"num_genes": GENES, "hidden_size": WIDTH, "dropout": 0.0, "num_attention_heads": 2, **changes}
    model = DelstGeneModel(DelstGeneConfig(encoder=encoder, **config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name or "bias" in name:  # as if it had learned something
                parameter.normal_()
    model.set_missing_values(torch.rand(config["num_genes"], generator=torch.Generator().manual_seed(3)))
    return model


def make_values(genes: int = GENES) -> torch.Tensor:
    return torch.rand(BATCH, genes, generator=torch.Generator().manual_seed(1)) * 3


def make_mask(genes: int = GENES) -> torch.Tensor:
    return torch.rand(BATCH, genes, generator=torch.Generator().manual_seed(2)) > 0.4


# --- the set encoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding_size", [None, 6])
def test_the_set_encoder_is_attention_over_the_tokens_of_the_measured_genes(embedding_size):
    model = make_encoder(embedding_size=embedding_size).double()
    values, mask = make_values().double(), make_mask()
    pooling = model.pooling
    pooled = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    for spot in range(BATCH):
        genes = [gene for gene in range(GENES) if mask[spot, gene]]
        for head in range(2):
            scores, parts = [], []
            for gene in genes:
                embedding = pooling.gene_embeddings.weight[gene]
                expression = values[spot, gene] - model.missing_values[gene]
                token = expression * embedding
                key, offset = pooling.score_weight[head], pooling.score_weight[2 + head]
                scores.append(math.exp(key @ token + offset @ embedding))
                parts.append((pooling.value_proj.weight @ token)[head * 4 : head * 4 + 4])
            mean = sum(score * part for score, part in zip(scores, parts, strict=True)) / sum(scores)
            pooled[spot, head * 4 : head * 4 + 4] = mean * math.sqrt(len(genes))
    torch.testing.assert_close(model(values, mask).pooler_output, model.layers(pooled))


def test_a_new_set_encoder_weighs_all_genes_alike():
    torch.manual_seed(0)
    model = DelstGeneModel(DelstGeneConfig(encoder="set", num_genes=GENES, hidden_size=WIDTH)).eval()
    values = make_values()
    tokens = values[:, :, None] * model.pooling.gene_embeddings.weight
    expected = model.pooling.value_proj(tokens).mean(1) * math.sqrt(GENES)
    torch.testing.assert_close(model.pooling(model.pooling.gene_embeddings.weight, values), expected)
    model.train()(values).pooler_output.square().sum().backward()
    assert model.pooling.score_weight.grad.abs().min() > 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_masked_gene_has_no_influence(encoder):
    model, values, mask = make_encoder(encoder), make_values(), make_mask()
    expected = model(values, mask).pooler_output
    for other in (99.0, -1.0, math.nan, math.inf):
        assert torch.equal(model(torch.where(mask, values, other), mask).pooler_output, expected)
    changed = torch.where(mask, values + 1, values)
    assert (model(changed, mask).pooler_output != expected).any(1).all()
    all_measured = torch.ones_like(mask)
    torch.testing.assert_close(model(values, all_measured).pooler_output, model(values).pooler_output)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_spot_of_which_nothing_was_measured_gives_numbers_and_gradients(encoder):
    model, values, mask = make_encoder(encoder).train(), make_values(), make_mask()
    mask[1] = False
    values[1] = math.nan
    features = model(values, mask).pooler_output
    features.square().sum().backward()
    assert torch.isfinite(features).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    if encoder == "set":
        torch.testing.assert_close(features[1], model.layers(torch.zeros(1, WIDTH))[0])
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.isfinite(half(values, mask).pooler_output).all()


def test_the_set_encoder_takes_the_genes_in_any_order_with_their_embeddings():
    model, values, mask = make_encoder(), make_values(), make_mask()
    order = torch.randperm(GENES, generator=torch.Generator().manual_seed(0))
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned.pooling.gene_embeddings.weight.copy_(model.pooling.gene_embeddings.weight[order])
    turned.set_missing_values(model.missing_values[order])
    expected = model(values, mask).pooler_output
    torch.testing.assert_close(turned(values[:, order], mask[:, order]).pooler_output, expected)


def test_gradient_checkpointing_of_the_pooling():
    plain = make_encoder().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.pooling.gradient_checkpointing
    for model in (plain, checkpointed):
        model(make_values(), make_mask()).pooler_output.square().sum().backward()
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_the_pooling_holds_no_token_of_a_gene():
    """Nothing that is kept for the backward pass has the size of (batch, genes, width)."""
    batch, genes, width = 16, 300, 64
    model = make_encoder(num_genes=genes, hidden_size=width).train()
    sizes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.rand(batch, genes)).pooler_output.sum().backward()
    assert max(sizes) <= max(batch * 2 * genes, genes * width)


@pytest.mark.parametrize(
    ("norm", "kind"), [("layer_norm", nn.LayerNorm), ("rms_norm", nn.RMSNorm), ("none", nn.Identity)]
)
@pytest.mark.parametrize("encoder", ["mlp", "set"])
def test_depth_width_dropout_and_norm(encoder, norm, kind):
    model = make_encoder(encoder, norm=norm, num_hidden_layers=3, hidden_size=12, dropout=0.3)
    assert [type(block[1]) for block in model.layers] == [kind] * 3
    assert [block[3].p for block in model.layers] == [0.3] * 3
    assert [block[0].out_features for block in model.layers] == [12] * 3
    assert model(make_values()).pooler_output.shape == (BATCH, 12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_save_and_load(encoder, tmp_path):
    model = make_encoder(encoder)
    model.save_pretrained(tmp_path)
    loaded, info = DelstGeneModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = model(make_values(), make_mask()).pooler_output
    torch.testing.assert_close(loaded(make_values(), make_mask()).pooler_output, expected)


# --- genes that are added -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_added_genes_leave_the_old_ones_as_they_are(encoder, tmp_path):
    extractor = DelstGeneFeatureExtractor([f"G{i}" for i in range(GENES)])
    vision = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    torch.manual_seed(0)
    gene = {"encoder": encoder, "num_genes": GENES, "hidden_size": WIDTH}
    model = DelstModel(DelstConfig(vision_config=vision, gene_config=gene, projection_dim=6)).eval()
    model.gene_model = make_encoder(encoder)
    model.config.gene_config = model.gene_model.config
    counts, names = torch.randint(0, 9, (BATCH, GENES)), list(extractor.vocabulary)
    before = model.get_gene_features(**features_of(extractor, counts, names)).pooler_output

    assert extractor.add_genes(["new", "G3", "newer", "new"]) == 2
    assert extractor.vocabulary[-2:] == ["new", "newer"]
    model.resize_gene_embeddings(len(extractor.vocabulary))
    assert model.config.gene_config.num_genes == GENES + 2
    after = model.get_gene_features(**features_of(extractor, counts, names)).pooler_output
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)

    # The new genes are read, and learned.
    more = torch.cat([counts, torch.full((BATCH, 2), 7)], dim=1)
    inputs = features_of(extractor, more, [*names, "new", "newer"])
    model.train().get_gene_features(**inputs).pooler_output.sum().backward()
    grown = model.gene_model.pooling.gene_embeddings.weight if encoder == "set" else first_weight(model.gene_model).T
    gradient = model.gene_model.pooling.gene_embeddings.weight.grad if encoder == "set" else first_gradient(model).T
    assert grown.shape[0] == GENES + 2 and (gradient[-2:].abs().sum(1) > 0).all()

    model.eval().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded = DelstModel.from_pretrained(tmp_path)
    assert DelstGeneFeatureExtractor.from_pretrained(tmp_path).vocabulary == extractor.vocabulary
    with torch.no_grad():
        expected = model.get_gene_features(**inputs).pooler_output
        torch.testing.assert_close(loaded.get_gene_features(**inputs).pooler_output, expected)


def features_of(extractor, counts, names):
    features = extractor(counts, names, return_tensors="pt")
    return {name: features[name] for name in ("gene_values", "gene_mask")}


def first_layer(model: DelstGeneModel) -> nn.Linear:
    return model.layers[0] if model.config.encoder == "linear" else model.layers[0][0]


def first_weight(model: DelstGeneModel) -> torch.Tensor:
    return first_layer(model).weight


def first_gradient(model: DelstModel) -> torch.Tensor:
    return first_layer(model.gene_model).weight.grad


def test_a_vocabulary_does_not_shrink():
    with pytest.raises(ValueError, match="num_genes=4 is less than the 9 genes.*leave them out of the input"):
        make_encoder().resize_gene_embeddings(4)


# --- given embeddings -----------------------------------------------------------------------------------------------


def test_given_embeddings_are_matched_by_name():
    model = make_encoder(embedding_size=6)
    before = model.pooling.gene_embeddings.weight.clone()
    vocabulary = [f"G{i}" for i in range(GENES)]
    names = ["G7", "other", "G0", "G2"]
    given = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 50 + 300
    report = model.load_gene_embeddings(given.numpy(), names, vocabulary)
    assert report == {
        "matched": 3,
        "vocabulary": 9,
        "match_rate": 3 / 9,
        "unmatched": ["G1", "G3", "G4", "G5", "G6", "G8"],
    }
    after = model.pooling.gene_embeddings.weight
    rest = [1, 3, 4, 5, 6, 8]
    assert torch.equal(after[rest], before[rest])
    centred = given - given.mean(0)
    expected = centred[[2, 3, 0]] / centred[[2, 3, 0]].square().mean().sqrt()  # G0, G2, G7
    torch.testing.assert_close(after[[0, 2, 7]], expected)


@pytest.mark.parametrize(
    ("encoder", "shape", "names", "message"),
    [
        ("mlp", (2, 8), ["G0", "G1"], "encoder='mlp' has no gene embeddings. Build the model with encoder='set'"),
        ("set", (2, 5), ["G0", "G1"], r"embeddings has shape \(2, 5\), for 2 names and embedding_size=8"),
        ("set", (3, 8), ["G0", "G1"], r"embeddings has shape \(3, 8\), for 2 names"),
        (
            "set",
            (2, 8),
            ["ENSG1", "ENSG2"],
            "None of the vocabulary's 9 genes, such as .*'G0'.*is among the given names",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(encoder, shape, names, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(encoder).load_gene_embeddings(torch.zeros(shape), names, [f"G{i}" for i in range(GENES)])
