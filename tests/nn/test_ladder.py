import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, StackDataset

from kexue.errors import CheckpointError, DataError
from kexue.nn import CachedStates, LadderBlock, LadderSideNetwork, Transformer, TransformerConfig


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Backbone(nn.Module):
    """Three layers of tanh with dropout, and a normalisation after them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.5)) for _ in range(3))
        self.norm = nn.LayerNorm(6)

    def forward(self, x, attention_mask=None):
        assert not torch.is_grad_enabled()  # or the activations would be kept
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Rung(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, s, mask=None):
        s = torch.sin(self.map(s))
        return s if mask is None else s * mask[..., None]


def ladder(backbone=None, *, taps=(0, 1, 3), width=4, seed=0, **options):
    backbone = backbone or Backbone()
    torch.manual_seed(seed)
    options = {"block_factory": Rung} | options
    side = LadderSideNetwork(backbone, taps=taps, width=width, **options)
    side(normal(1, 2, 6))
    return side


def test_the_gated_ladder_is_its_formula():
    side = ladder()
    with torch.no_grad():
        side.gates.copy_(torch.tensor([0.05, -0.2]))
    x = normal(2, 5, 6)
    b = side.backbone.eval()
    h1 = torch.tanh(b.layers[0][0](x))
    h3 = torch.tanh(b.layers[2][0](torch.tanh(b.layers[1][0](h1))))
    down = [map_.weight.T for map_ in side.down]
    g = torch.sigmoid(torch.tensor([0.5, -2.0]))  # divided by T = 0.1
    s = side.blocks[0](g[0] * (x @ down[0]) + (1 - g[0]) * (h1 @ down[1]))
    s = side.blocks[1](g[1] * s + (1 - g[1]) * (h3 @ down[2]))
    torch.testing.assert_close(side(x), s @ side.up.weight.T)


def test_the_additive_ladder_is_its_formula():
    side = ladder(mode="additive", upsample=False)
    x = normal(2, 5, 6)
    h = side.states(x)
    s = side.down[0](h[0])
    s = side.blocks[0](s) + side.down[1](h[1])
    torch.testing.assert_close(side(x), side.blocks[1](s) + side.down[2](h[2]))
    assert side.gates is None
    assert side.up is None


def test_numbers_and_names_find_the_same_states():
    by_number = ladder(taps=(0, 2, -1)).states(x := normal(2, 5, 6))
    by_name = ladder(taps=("layers.1", "layers.2", "norm")).states(x)
    assert torch.equal(by_number[0], x)
    assert torch.equal(by_number[1], by_name[0])
    assert torch.equal(by_number[2], by_name[1])
    torch.testing.assert_close(by_name[2], nn.functional.layer_norm(by_name[1], (6,)))


def test_a_state_is_safe_from_layers_that_write_in_place():
    backbone = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True))
    x = normal(4, 6)
    taken = LadderSideNetwork(backbone, taps=[1, 2], width=2, block_factory=Rung).states(x)
    assert torch.equal(taken[0], backbone[0](x))
    assert (taken[0] < 0).any()


def test_only_the_ladder_learns_and_the_backbone_keeps_still():
    side = ladder()
    x = normal(2, 5, 6)
    assert side.train().training
    assert not any(module.training for module in side.backbone.modules())
    assert torch.equal(side(x), side(x))  # its dropout is off
    side(x).square().mean().backward()
    assert all(p.grad is None for p in side.backbone.parameters())
    learnt = [name for name, p in side.named_parameters() if p.requires_grad]
    assert all(side.get_parameter(name).grad.abs().sum() > 0 for name in learnt)
    assert not [name for name in learnt if name.startswith("backbone")]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in side.backbone.modules())
    noisy = ladder(frozen_eval=False).train()
    assert not torch.equal(noisy(x), noisy(x))


def test_gradients_reach_no_state_of_the_backbone():
    """What is kept for the backward pass is a fraction of what the backbone itself would keep."""
    layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    backbone = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    x = normal(4, 32, 64)

    def kept(run, parameters):
        own, sizes = {p.untyped_storage().data_ptr() for p in parameters}, {}

        def count(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = run().square().mean()
        loss.backward()
        return sum(size for size, _ in sizes.values())

    full = kept(lambda: backbone(x), list(backbone.parameters()))
    side = LadderSideNetwork(backbone, taps=range(5), width=8)
    side(x)
    assert kept(lambda: side(x), list(side.parameters())) < 0.25 * full


def test_masks_reach_the_rungs():
    side = ladder()
    x, mask = normal(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    out = side(x, attention_mask=mask)
    assert (out[mask == 0] == 0).all()
    assert (out[mask == 1] != 0).all()
    torch.testing.assert_close(side(states=side.states(x), mask=mask.bool()), out)


def test_a_block_attends_to_what_the_mask_keeps_and_to_nothing_later():
    torch.manual_seed(0)
    x, mask = normal(2, 7, 64), torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1] = False
    block, causal = LadderBlock(64), LadderBlock(64, causal=True)
    out = block(x, mask)
    torch.testing.assert_close(out[0, :4], block(x[:1, :4])[0])
    assert out.isfinite().all()
    changed = x.clone()
    changed[:, 5:] += 1
    for arguments in ((), (mask,)):
        torch.testing.assert_close(causal(changed, *arguments)[:, :5], causal(x, *arguments)[:, :5])
        assert not torch.allclose(causal(changed, *arguments)[:, 5:], causal(x, *arguments)[:, 5:])
    torch.testing.assert_close(causal(x, torch.ones_like(mask)), causal(x))


class Recurrent(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(8, 4 if both else 8, batch_first=True, bidirectional=both) for _ in range(2))

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = layer(x)[0]
        return x


class Masked(nn.Module):
    """A Transformer of ours, which sees what the mask says."""

    def __init__(self, causal):
        super().__init__()
        self.net = Transformer(TransformerConfig(30, hidden_size=8, num_layers=2, num_heads=2))
        self.causal, self.layers = causal, self.net.blocks

    def forward(self, tokens, mask=None):
        seen = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        seen = (seen.tril() if self.causal else seen)[None]
        return self.net(tokens, mask=seen if mask is None else seen & mask[:, None])


def hugging_face(name):
    tf = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    short = {"n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = {
        "gpt2": lambda: tf.GPT2Config(vocab_size=30, n_embd=8, **short),
        "llama": lambda: tf.LlamaConfig(vocab_size=30, **small),
        "bloom": lambda: tf.BloomConfig(vocab_size=30, hidden_size=8, **short),
        "bert": lambda: tf.BertConfig(vocab_size=30, **small),
        "bert as decoder": lambda: tf.BertConfig(vocab_size=30, **small, is_decoder=True),
    }[name]()
    return tf.AutoModel.from_config(config)


BACKBONES = {
    **{name: (lambda name=name: hugging_face(name), name != "bert")
       for name in ("gpt2", "llama", "bloom", "bert", "bert as decoder")},
    "recurrent": (lambda: Recurrent(False), True),
    "recurrent both ways": (lambda: Recurrent(True), False),
    "ours": (lambda: Masked(True), True),
    "ours both ways": (lambda: Masked(False), False),
}  # fmt: skip


@pytest.mark.parametrize(("make", "causal"), BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("training", [False, True])
def test_a_ladder_beside_a_causal_backbone_sees_no_later_token(make, causal, training):
    """Outputs at past places stay as they are when later tokens change; beside a bidirectional one they do not."""
    torch.manual_seed(0)
    side = LadderSideNetwork(make(), taps=[0, 1, 2], width=8, frozen_eval=not training).train(training)
    recurrent = isinstance(side.backbone, Recurrent)
    ids = torch.randint(3, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 4:] = torch.randint(3, 30, (3, 3), generator=torch.Generator().manual_seed(2))
    one, two = (normal(30, 8)[x] if recurrent else x for x in (ids, other))
    side(one)
    side.eval()
    assert torch.allclose(side(one)[:, :4], side(two)[:, :4], atol=1e-5) == causal
    assert [block.causal for block in side.blocks] == [causal] * 2
    if recurrent:
        return
    kept = torch.arange(7) > torch.tensor([[1], [-1], [0]])  # padding on the left
    keyword = "mask" if isinstance(side.backbone, Masked) else "attention_mask"
    first, second = (side(x, **{keyword: kept}) for x in (one, two))
    assert first.isfinite().all()
    assert torch.allclose(first[:, 2:4], second[:, 2:4], atol=1e-5) == causal


def test_the_direction_is_said_or_found_before_states_alone_are_read():
    backbone = Recurrent(False)
    x = normal(2, 5, 8)
    side = LadderSideNetwork(backbone, taps=[0, 1, 2], width=8)
    with pytest.raises(ValueError, match="causal=True or causal=False"):
        side(states=tuple(normal(2, 5, 8) for _ in range(3)))
    assert side(x[:, :1]).shape == (2, 1, 8)  # one token tells nothing
    states = side.states(x)
    assert all(block.causal for block in side.blocks)
    torch.testing.assert_close(side(states=states), side(x))
    said = LadderSideNetwork(backbone, taps=[0, 1, 2], width=8, causal=False)
    assert said(states=states).shape == (2, 5, 8)
    assert not any(block.causal for block in said.blocks)
    with pytest.raises(ValueError, match="block_factory"):
        LadderSideNetwork(backbone, taps=[0, 1], width=8, causal=True, block_factory=Rung)


def test_finding_the_direction_leaves_every_part_of_the_backbone_in_its_mode():
    backbone = Backbone()
    side = LadderSideNetwork(backbone, taps=[0, 1, 2], width=8, frozen_eval=False).train()
    backbone.layers[1].eval()
    modes = [part.training for part in backbone.modules()]
    side(normal(2, 5, 6))
    assert [part.training for part in backbone.modules()] == modes
    assert not all(modes)
    assert any(modes)


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_without_keys_attends_to_nothing(causal):
    """Its attention is 0, whatever the others hold, and nothing becomes NaN."""
    block = LadderBlock(8, num_heads=2, causal=causal)
    s = normal(2, 5, 8).requires_grad_()
    mask = torch.tensor([[False, False, True, True, True], [False] * 5])
    out = block(s, mask)
    lone = s.detach() + block.out.bias
    lone = lone + block.feed(block.norm_feed(lone))
    nothing = ~(mask[:, None] & (torch.ones(5, 5, dtype=torch.bool).tril() if causal else True)).any(-1)
    nothing = nothing.expand(2, 5)
    assert nothing.sum() == (7 if causal else 5)
    torch.testing.assert_close(out[nothing], lone[nothing])
    out.sum().backward()
    assert s.grad.isfinite().all()
    torch.testing.assert_close(out[:1, 2:], block(s[:1, 2:]))  # padding changes nothing of the rest


def test_masks_of_other_shapes_are_refused():
    block, s = LadderBlock(8, num_heads=2), normal(2, 5, 8)
    with pytest.raises(ValueError, match=r"\(2, 5\).*got \(2, 4\)"):
        block(s, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="int64"):
        block(s, torch.ones(2, 5, dtype=torch.int64))
    keys = torch.tensor([[True, True, False, True, True], [True] * 5])
    torch.testing.assert_close(block(s, keys), block(s, keys[:, None].expand(2, 5, 5)))


def test_hugging_face_models():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    bert = transformers.BertModel(config).eval()
    side = LadderSideNetwork(bert, taps=[0, 2, 4], width=8)
    optimizer = torch.optim.SGD([p for p in side.parameters() if p.requires_grad], 0.1)  # nothing lazy
    ids = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    hidden = bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    taken = side.states(input_ids=ids, attention_mask=mask)
    for ours, theirs in zip(taken, (hidden[0], hidden[2], hidden[4]), strict=True):
        torch.testing.assert_close(ours, theirs)
    out = side(input_ids=ids, attention_mask=mask)
    assert out.shape == (2, 6, 32)
    out.sum().backward()
    optimizer.step()
    other = ids.clone()
    other[0, 4:] = 7  # behind the mask
    torch.testing.assert_close(side(input_ids=other, attention_mask=mask)[0, :4], side(ids, attention_mask=mask)[0, :4])


def test_weights_of_the_ladder_alone():
    first, second = ladder(seed=0), ladder(seed=1)
    x = normal(2, 5, 6)
    weights = first.side_state_dict()
    assert not [name for name in weights if name.startswith("backbone.")]
    assert not torch.allclose(first(x), second(x))
    second.load_side_state_dict(weights)
    assert torch.equal(first(x), second(x))
    fresh = LadderSideNetwork(Backbone(), taps=(0, 1, 3), width=4, block_factory=Rung)  # its maps still lazy
    fresh.load_side_state_dict(weights)
    assert torch.equal(first(x), fresh(x))
    with pytest.raises(CheckpointError, match=r"missing \['gates'\], left over \['new'\]"):
        second.load_side_state_dict({k: v for k, v in weights.items() if k != "gates"} | {"new": x})


@pytest.mark.parametrize("mode", ["gated", "additive"])
def test_the_ladder_compiles_in_one_graph(mode):
    torch._dynamo.reset()
    side = ladder(mode=mode)
    states = side.states(normal(2, 5, 6))
    compiled = torch.compile(lambda *h: side(states=h), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*states), side(states=states))


def test_a_backbone_in_half_precision_feeds_a_ladder_in_float32():
    side = ladder(block_factory=None, width=8)
    x = normal(2, 5, 6)
    expected = side(x)
    side.backbone.bfloat16()
    out = side(x.bfloat16())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)  # three digits of bfloat16 through three layers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        side(x).float().sum().backward()
    assert side.gates.grad.isfinite().all()


# states on disk


def test_training_from_disk_is_training_from_the_backbone(tmp_path):
    side, x = ladder(), normal(7, 5, 6)
    mask = torch.ones(7, 5, dtype=torch.int64)
    mask[2, 3:] = 0
    batches = [{"x": x[i : i + 3], "attention_mask": mask[i : i + 3]} for i in range(0, 7, 3)]
    cached = side.cache_states(batches, tmp_path / "states")
    assert len(cached) == 7
    assert set(cached[2]) == {"0", "1", "3", "mask"}
    joined = StackDataset(CachedStates(tmp_path / "states"), torch.arange(7))
    seen = 0
    for batch, labels in DataLoader(joined, batch_size=4, shuffle=True, num_workers=0):
        torch.testing.assert_close(side(states=batch), side(x[labels], attention_mask=mask[labels]))
        seen += len(labels)
    assert seen == 7
    again = cached.__getitems__([6, 0, 6])
    assert [torch.equal(sample["3"], cached[i]["3"]) for sample, i in zip(again, (6, 0, 6), strict=True)] == [True] * 3
    assert torch.equal(pickle.loads(pickle.dumps(cached))[6]["3"], cached[6]["3"])
    files = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert files == ["index.json", *(f"states-{i:06d}.safetensors" for i in range(3))]
    assert load_file(tmp_path / "states" / files[3])["mask"].dtype == torch.bool


def test_samples_of_different_length_are_padded_behind_a_mask(tmp_path):
    side = ladder()
    texts = [normal(2, 5, 6), normal(1, 3, 6, seed=1)]
    cached = side.cache_states([(x,) for x in texts], tmp_path)
    batch = CachedStates.collate([cached[0], cached[2]])
    assert batch["mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    out = side(states=batch)
    torch.testing.assert_close(out[0], side(texts[0])[0])
    torch.testing.assert_close(out[1, :3], side(texts[1])[0])
    assert (out[1, 3:] == 0).all()


def test_an_interrupted_or_damaged_cache_says_so(tmp_path):
    side = ladder()

    def breaks():
        yield normal(2, 5, 6)
        raise KeyboardInterrupt

    side.cache_states([normal(1, 5, 6)], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        side.cache_states(breaks(), tmp_path)
    with pytest.raises(DataError, match="interrupted"):
        CachedStates(tmp_path)
    cached = side.cache_states([normal(3, 5, 6)], tmp_path)
    (tmp_path / "states-000000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"states-000000\.safetensors"):
        cached[0]
    (tmp_path / "index.json").write_text(json.dumps({"format": 2, "taps": [], "rows": []}))
    with pytest.raises(DataError, match="format 2, expected 1"):
        CachedStates(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(DataError, match="expected an object"):
        CachedStates(tmp_path)


def test_mistakes_are_named(tmp_path):
    backbone, x = Backbone(), normal(2, 5, 6)
    for options, words in (
        ({"taps": [1]}, "two states at least"),
        ({"taps": [1, 1]}, "once"),
        ({"taps": [0, 4]}, "states 0 to 3"),
        ({"taps": ["layers.0", "layer.1"]}, r"no module 'layer.1'; it has .*layers.2"),
        ({"width": 0}, "width >= 1"),
        ({"gate_temperature": 0.0}, "gate_temperature > 0"),
        ({"mode": "sum"}, "'gated' or 'additive'"),
    ):
        with pytest.raises(ValueError, match=words):
            LadderSideNetwork(backbone, **({"taps": [0, 1], "width": 4} | options))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        LadderBlock(10, num_heads=4)
    side = ladder(backbone)
    with pytest.raises(ValueError, match="not both"):
        side(x, states=side.states(x))
    with pytest.raises(ValueError, match="expected 3 states"):
        side(states=side.states(x)[:2])
    with pytest.raises(ValueError, match=r"taps \['3'\] are missing"):
        side(states={"0": x, "1": x})
    with pytest.raises(ValueError, match="no batch"):
        side.cache_states([], tmp_path)
    backbone.idle = nn.Linear(6, 6)
    with pytest.raises(ValueError, match=r"never ran the tapped modules \['idle'\]"):
        LadderSideNetwork(backbone, taps=[0, "idle"], width=4)(x)
