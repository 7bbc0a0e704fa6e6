import dataclasses

import pytest
import torch
from torch.testing import assert_close

from kexue.nn import Transformer, TransformerConfig, unilm_mask
from kexue.nn.position import rotary_angles

POSITIONS = ["rotary", "sinusoidal", "t5", "learned", "none"]


def build(**changes):
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=40, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, max_length=20
    )
    model = Transformer(dataclasses.replace(config, **changes)).eval()
    with torch.no_grad():  # larger weights than at the start, so that attention is far from uniform
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(0.2 * torch.randn(p.shape))
            elif "tokens" not in name:
                p.mul_(10).add_(0.1 * torch.randn(p.shape))
    return model


def ids(batch=2, length=9, seed=0):
    return torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def copy_bert(peer, model):
    """Weights of a transformers BERT or RoFormer into ours."""
    e = peer.embeddings
    pairs = [(e.word_embeddings, model.tokens), (e.token_type_embeddings, model.segments), (e.LayerNorm, model.norm)]
    if hasattr(e, "position_embeddings"):
        pairs.append((e.position_embeddings, model.positions.table))
    for theirs, ours in zip(peer.encoder.layer, model.blocks, strict=True):
        a = theirs.attention
        pairs += [(a.output.dense, ours.out), (a.output.LayerNorm, ours.norm1), (theirs.intermediate.dense, ours.up)]
        pairs += [(theirs.output.dense, ours.down), (theirs.output.LayerNorm, ours.norm2)]
        three = (a.self.query, a.self.key, a.self.value)
        with torch.no_grad():
            ours.qkv.weight.copy_(torch.cat([m.weight for m in three]))
            ours.qkv.bias.copy_(torch.cat([m.bias for m in three]))
    for source, target in pairs:
        target.load_state_dict(source.state_dict())


@pytest.mark.parametrize(("name", "position"), [("RoFormer", "rotary"), ("Bert", "learned")])
def test_it_is_the_peer_with_its_weights(name, position):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    peer, model = getattr(transformers, f"{name}Model")(config).eval(), build(position=position)
    copy_bert(peer, model)
    tokens, segments = ids(), torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        theirs = peer(tokens, attention_mask=mask.long(), token_type_ids=segments, output_hidden_states=True)
        ours = model(tokens, mask=mask, segment_ids=segments, hidden_states=True)
        assert_close(model(tokens).last_hidden_state, peer(tokens).last_hidden_state, atol=1e-5, rtol=0)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(a[mask], b[mask], atol=1e-5, rtol=0)
    assert_close(ours.last_hidden_state[mask], theirs.last_hidden_state[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_one_token_at_a_time_with_a_cache_is_one_causal_pass(position, norm):
    model, tokens = build(position=position, norm=norm), ids()
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        whole = model(tokens, mask=causal[None]).last_hidden_state
        assert model(tokens).cache is None
        out, cache = [], ()
        for first, last in [(0, 4), (4, 5), (5, 6), (6, 9)]:  # a prompt, single tokens, a few at once
            step = model(tokens[:, first:last], mask=causal[None, first:last, :last], cache=cache)
            out.append(step.last_hidden_state)
            cache = step.cache
        assert len(cache) == 3
        assert cache[0][0].shape == (2, 4, 9, 8)
    assert_close(torch.cat(out, 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_masked_keys_count_for_nothing(position, norm):
    model, tokens = build(position=position, norm=norm), ids()
    mask = torch.arange(9).expand(2, 9) < 6
    other = torch.where(mask, tokens, 39 - tokens.clamp(max=38))
    with torch.no_grad():
        a, b = (model(t, mask=mask).last_hidden_state[:, :6] for t in (tokens, other))
        short = model(tokens[:, :6]).last_hidden_state
        spread = model(tokens, mask=mask[:, None, None, :].expand(2, 4, 9, 9)).last_hidden_state[:, :6]
        free = model(tokens).last_hidden_state[:, :6]
    assert_close(a, b)
    assert_close(a, short, atol=2e-5, rtol=1e-4)
    assert_close(a, spread, atol=2e-5, rtol=1e-4)
    assert (a - free).abs().max() > 1e-2


def test_any_mask_is_obeyed():
    model, tokens = build(), ids()
    segments = torch.tensor([[0] * 4 + [1] * 5] * 2)
    allowed = unilm_mask(segments)
    with torch.no_grad():
        before = model(tokens, mask=allowed, segment_ids=segments).last_hidden_state
        changed = tokens.clone()
        changed[:, 6] = 39 - changed[:, 6]
        after = model(changed, mask=allowed, segment_ids=segments).last_hidden_state
    assert_close(after[:, :6], before[:, :6])  # neither the part that is read nor earlier writing sees place 6
    assert ((after - before)[:, 6:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("position", ["rotary", "t5"])
def test_a_query_without_keys_attends_to_nothing(position):
    model, tokens = build(position=position, num_layers=1), ids()
    mask = torch.ones(2, 9, 9, dtype=torch.bool)
    mask[:, 3] = False
    out = model(tokens, mask=mask, hidden_states=True)
    block = model.blocks[0]
    x = out.hidden_states[0][:, 3]
    x = block.norm1(x + block.out.bias)
    assert_close(out.last_hidden_state[:, 3], block.norm2(x + block.down(torch.nn.functional.gelu(block.up(x)))))
    out.last_hidden_state.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("position", POSITIONS)
def test_inference_mode_changes_the_product_but_not_the_result(position, monkeypatch):
    model, tokens, calls = build(position=position), ids(), []
    fast = torch.ops.mkldnn._linear_pointwise

    def count(*arguments):
        calls.append(arguments[1].shape)
        return fast(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    with torch.no_grad():
        usual = model(tokens).last_hidden_state
    assert not calls
    with torch.inference_mode():
        result = model(tokens).last_hidden_state
        assert len(calls) == 4 * 3  # four maps in each of three blocks
        model(tokens[:1, :4])
        assert len(calls) == 4 * 3  # so few rows are as fast the usual way
    assert_close(result.clone(), usual, atol=1e-5, rtol=1e-5)


def test_hooks_of_the_maps_are_heard_in_inference_mode():
    model, tokens = build(), ids()
    with torch.inference_mode():
        before = model(tokens).last_hidden_state
        model.blocks[1].up.register_forward_hook(lambda module, args, out: 2 * out)
        assert (model(tokens).last_hidden_state - before).abs().max() > 1e-2


@pytest.mark.parametrize(("position", "relative"), [("rotary", True), ("t5", True), ("learned", False)])
def test_relative_positions_do_not_see_a_shift(position, relative):
    model, tokens = build(position=position), ids()
    with torch.no_grad():
        here = model(tokens).last_hidden_state
        there = model(tokens, positions=torch.arange(9) + 11).last_hidden_state
        rows = model(tokens, positions=torch.stack((torch.arange(9), torch.arange(9) + 11))).last_hidden_state
        reverse = model(tokens, positions=torch.arange(9).flip(0)).last_hidden_state
    assert ((there - here).abs().max() < 1e-4) == relative
    assert_close(rows, torch.stack((here[0], there[1])), atol=2e-5, rtol=1e-4)
    assert (reverse - here).abs().max() > 1e-2


def test_without_positions_order_is_not_seen():
    model, tokens = build(position="none"), ids()
    order = torch.tensor([3, 0, 8, 1, 7, 2, 6, 4, 5])
    with torch.no_grad():
        a, b = model(tokens).last_hidden_state, model(tokens[:, order]).last_hidden_state
    assert_close(b, a[:, order], atol=2e-5, rtol=1e-4)


def test_the_pre_norm_block_is_its_formula():
    model, tokens = build(norm="pre", position="none", num_layers=1, num_segments=0), ids(1, 4)
    block, x = model.blocks[0], model.tokens(tokens)[0]
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    heads = [(q[:, s] @ k[:, s].T / 8**0.5).softmax(-1) @ v[:, s] for s in (slice(8 * i, 8 * i + 8) for i in range(4))]
    x = x + block.out(torch.cat(heads, -1))
    x = x + block.down(torch.nn.functional.gelu(block.up(block.norm2(x))))
    assert_close(model(tokens).last_hidden_state[0], model.norm(x))


def test_dropout_acts_in_training_alone():
    model, tokens = build(dropout=0.3), ids()
    with torch.no_grad():
        assert torch.equal(model(tokens).last_hidden_state, model(tokens).last_hidden_state)
        model.train()
        assert not torch.equal(model(tokens).last_hidden_state, model(tokens).last_hidden_state)


def test_padding_starts_at_zero_and_stays():
    model = build()
    model(torch.tensor([[0, 3, 0]])).last_hidden_state.square().sum().backward()
    assert (model.tokens.weight[0] == 0).all()
    assert (model.tokens.weight.grad[0] == 0).all()
    assert (model.tokens.weight.grad[3] != 0).any()


@pytest.mark.parametrize("position", POSITIONS)
def test_it_compiles_in_one_graph(position):
    torch._dynamo.reset()
    model, tokens = build(position=position), ids()
    mask = torch.arange(9).expand(2, 9) < 6
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(
            run(tokens, mask=mask).last_hidden_state, model(tokens, mask=mask).last_hidden_state, atol=1e-5, rtol=1e-5
        )


def test_it_runs_in_half_precision_and_under_autocast():
    model, tokens = build(), ids()
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(model(tokens).last_hidden_state.float(), expected, atol=0.3, rtol=0)  # 8 bits a product
        half = model.bfloat16()(tokens).last_hidden_state
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), expected, atol=0.3, rtol=0)


def test_bad_input_is_named():
    model, tokens = build(), ids()
    with pytest.raises(TypeError, match=r"bool.*int64"):
        model(tokens, mask=torch.ones(2, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(2, 9\).*got \(2, 8\)"):
        model(tokens, mask=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"got shape \(9,\)"):
        model(tokens[0])
    with pytest.raises(ValueError, match="position 29 is beyond"):
        build(position="learned")(ids(1, 30))
    for wrong in (
        {"hidden_size": 30},
        {"norm": "both"},
        {"position": "xl"},
        {"pad_id": 40},
        {"hidden_size": 4},
        {"dropout": 1},
    ):
        with pytest.raises(ValueError, match="got"):
            build(**wrong)


def test_each_block_may_have_its_own_mask_and_its_states_edited():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(11, hidden_size=16, num_layers=2, num_heads=2)).double().eval()
    ids = torch.randint(1, 11, (2, 5))
    causal, whole = torch.ones(5, 5, dtype=torch.bool).tril()[None], torch.ones(1, 5, 5, dtype=torch.bool)
    before = model(ids, hidden_states=True).hidden_states[0]
    x, _ = model.blocks[0](before, causal[:, None], model_turn(model, 5), None)
    x, _ = model.blocks[1](2 * x, whole[:, None], model_turn(model, 5), None)
    out = model(ids, mask=[causal, whole], before_block=lambda i, states: 2 * states if i == 1 else states)
    assert torch.allclose(out.last_hidden_state, x)
    same = model(ids, mask=[causal, causal]).last_hidden_state
    assert torch.equal(same, model(ids, mask=causal).last_hidden_state)
    with pytest.raises(ValueError, match="one for all 2 blocks, or one for each, got 3"):
        model(ids, mask=[causal] * 3)


def model_turn(model, length):
    config = model.config
    return rotary_angles(torch.arange(length), config.hidden_size // config.num_heads, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_block_offers_the_keys_and_values_that_it_caches(norm):
    torch.manual_seed(0)
    block = Transformer(TransformerConfig(11, hidden_size=16, num_heads=2, norm=norm)).eval().blocks[0]
    x, turn = torch.randn(2, 5, 16), rotary_angles(torch.arange(5), 8)
    _, cached = block(x, None, turn, None)
    for one, other in zip(block.keys_values(x, turn), cached, strict=True):
        assert torch.equal(one, other)
    first = block.keys_values(x[:, :1])
    assert torch.allclose(first[0], cached[0][:, :, :1])
