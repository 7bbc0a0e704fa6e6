"""Laws of state that hold for every optimizer and wrapper: origin of its numbers, who may change it, how it ages."""

import copy
import inspect
import pickle
from itertools import product

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from kexue.errors import CheckpointError
from kexue.optim import (
    EMA,
    Adafactor,
    AdaX,
    DecoupledWeightDecay,
    GradientAccumulation,
    LayerAdaptation,
    Lazy,
    Lookahead,
    PiecewiseLinear,
    unwrap,
)
from kexue.optim.kind import OURS


class Stranger(SGD):
    """Derived, so that nothing is known of it."""


INNER = {
    "sgd": lambda p, **o: SGD(p, lr=0.1, momentum=0.9, **o),
    "adam": lambda p, **o: Adam(p, lr=0.1, **o),
    "adamw": lambda p, **o: AdamW(p, lr=0.1, **o),
    "nadam": lambda p, **o: NAdam(p, lr=0.1, **o),
    "radam": lambda p, **o: RAdam(p, lr=0.1, **o),
    "adamax": lambda p, **o: Adamax(p, lr=0.1, **o),
    "rmsprop": lambda p, **o: RMSprop(p, lr=0.1, momentum=0.5, centered=True, **o),
    "adagrad": lambda p, **o: Adagrad(p, lr=0.1, initial_accumulator_value=0.5, **o),
    "adadelta": lambda p, **o: Adadelta(p, lr=0.1, **o),
    "adax": lambda p, **o: AdaX(p, lr=0.1, **o),
    "adax coupled": lambda p, **o: AdaX(p, lr=0.1, decoupled=False, **o),
    "adafactor": lambda p, **o: Adafactor(p, lr=0.1, min_dim_size_to_factor=100, **o),
    "stranger": lambda p, **o: Stranger(p, lr=0.1, momentum=0.9, **o),
    "layers": lambda p, **o: LayerAdaptation(SGD(p, lr=0.1, momentum=0.9, **o)),
}
WRAPPERS = {
    "weight_decay": lambda o, **_: DecoupledWeightDecay(o, 0.1, allow_double=True),
    "layer_adaptation": lambda o, **_: LayerAdaptation(o),
    "piecewise_linear": lambda o, **_: PiecewiseLinear(o, {0: 0.5, 4: 1.0}),
    "gradient_accumulation": lambda o, **_: GradientAccumulation(o, 2),
    "lookahead": lambda o, **_: Lookahead(o, 2, momentum="pullback"),
    "lazy": lambda o, **_: Lazy(o, list(o.param_groups[0]["params"])),
    "lazy strict": lambda o, **_: Lazy(o, list(o.param_groups[0]["params"]), mode="strict"),
    "ema": lambda o, **_: EMA(o),
}


def table(rows=4, dtype=torch.float64):
    return nn.Parameter(torch.arange(1.0, 2 * rows + 1, dtype=dtype).reshape(rows, 2))


def tensors_of(optimizer):
    state = optimizer.state_dict()["state"]
    return {(i, n): t for i, entry in state.items() for n, t in entry.items() if torch.is_tensor(t)}


@pytest.fixture
def poison():
    """Memory that nobody has written to is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


# whence the numbers come


@pytest.mark.parametrize("mode", ["masked", "strict"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
@pytest.mark.parametrize("marked", [False, True])
def test_lazy_is_its_definition_whatever_the_decay(poison, make, decay, mode, marked):
    """Oracle: the inner optimizer runs whole; rows and, if strict, state get back what they were, new state being 0."""
    p, q = table(), table()
    ours, theirs = Lazy(make([p], weight_decay=decay), [p], mode=mode), make([q], weight_decay=decay)
    base, whole = unwrap(theirs), []
    for rows in ([0], [0, 2], [1], [3, 0], [2]):
        active = torch.zeros(4, 1, dtype=torch.bool)
        active[rows] = True
        gradient = torch.where(active, torch.tensor([1.0, -0.5], dtype=torch.float64), 0)
        if marked:
            ours.mark(p, torch.tensor(rows))
        old = q.detach().clone()
        kept = {n: t.clone() for n, t in base.state[q].items() if torch.is_tensor(t)}
        p.grad, q.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
        with torch.no_grad():
            q.copy_(torch.where(active, q, old))
            for name, value in base.state[q].items():
                if mode == "strict" and value.shape == q.shape:
                    value.copy_(torch.where(active, value, kept.get(name, 0)))
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        whole.append(p.detach().clone())
    for name, value in base.state[q].items():
        torch.testing.assert_close(unwrap(ours).state[p][name], value, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(torch.stack(whole)).all()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_no_number_comes_from_memory_that_nobody_wrote(poison, make, wrap):
    p = nn.Parameter(torch.linspace(-1, 1, 600).reshape(300, 2))
    optimizer = wrap(make([p], weight_decay=0.0 if make is INNER["layers"] else 0.1))
    for step in range(5):
        p.grad = torch.zeros_like(p)
        p.grad[step::7] = 1.0
        optimizer.step()
    assert torch.isfinite(p).all()
    assert all(torch.isfinite(t).all() for t in tensors_of(optimizer).values())


# who may change it


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("outer", [None, EMA, Lookahead])
@pytest.mark.parametrize("order", ["assign after delete", "pop"])
def test_a_parameter_that_grows_takes_its_state_along(wrap, outer, order):
    """The surgery of those who add rows: every tensor of the state is lengthened, and handed to a new parameter."""
    p = table()
    optimizer = wrap(Adam([p], lr=0.1))
    optimizer = outer(optimizer) if outer else optimizer
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    before = {n: t.clone() for n, t in optimizer.state[p].items()}
    new = nn.Parameter(torch.cat([p.detach(), torch.full((3, 2), 7.0, dtype=torch.float64)]))
    state = optimizer.state.get(p) if order != "pop" else optimizer.state.pop(p)
    for name, value in list(state.items()):
        if value.shape == p.shape:
            state[name] = torch.cat([value, torch.zeros(3, 2, dtype=value.dtype)])
    if order != "pop":
        del optimizer.state[p]
    optimizer.param_groups[0]["params"][0] = new
    optimizer.state[new] = state
    assert p not in optimizer.state
    assert list(optimizer.state) == [new]
    after = optimizer.state_dict()["state"][0]
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name][: len(p)] if value.dim() else after[name], value)
    for _ in range(4):
        new.grad = torch.ones_like(new)
        optimizer.step()
    assert torch.isfinite(new).all()
    assert optimizer.state_dict()["state"][0]["exp_avg"].shape == new.shape


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_state_is_written_through(wrap):
    p, other = table(), table(3)
    optimizer = wrap(Adam([p, other], lr=0.1))
    for _ in range(2):
        for q in (p, other):
            q.grad = torch.ones_like(q)
        optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.full_like(p, 5.0)
    assert unwrap(optimizer).state[p]["exp_avg"].eq(5).all()
    optimizer.state[p].pop("exp_avg_sq")
    assert "exp_avg_sq" not in unwrap(optimizer).state[p]
    for name in [name for name in optimizer.state[other] if name.startswith("kexue.")]:
        optimizer.state[other][name] = torch.zeros_like(optimizer.state[other][name])
        assert not optimizer.state_dict()["state"][1][name].any()
    assert optimizer.state.get(table(), "none") == "none"
    assert len(optimizer.state) == 2
    with pytest.raises(KeyError):
        del optimizer.state[table()]
    held = {q: dict(values) for q, values in optimizer.state.items()}
    optimizer.state.clear()
    assert not optimizer.state
    assert not optimizer.state_dict()["state"]
    optimizer.state = held
    assert {q: set(values) for q, values in optimizer.state.items()} == {q: set(values) for q, values in held.items()}
    optimizer.state = {}
    for q in (p, other):
        q.grad = torch.ones_like(q)
    optimizer.step()  # all of it is created again
    optimizer.step()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_alone_and_alike(wrap, way):
    p = table()
    optimizer = wrap(Adam([p], lr=0.1))

    def train(param, trained, steps):
        for step in range(steps):
            param.grad = torch.full_like(param, 1.0 + step)
            trained.step()

    train(p, optimizer, 3)
    again, q = copy.deepcopy((optimizer, p)) if way == "deepcopy" else pickle.loads(pickle.dumps((optimizer, p)))
    assert again.param_groups[0]["params"][0] is q
    train(p, optimizer, 4)
    assert not torch.equal(p, q)
    train(q, again, 4)
    assert torch.equal(p, q)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_of(optimizer).values(), tensors_of(again).values(), strict=True)
    )


EXCLUDES = {
    "name": lambda model: "bias",
    "tensor": lambda model: model.bias,
    "tensors": lambda model: [model.bias],
    "function": lambda model: lambda name, p: name == "bias",
    "identity": lambda model: lambda name, p: p is model.bias,
}


@pytest.mark.parametrize("exclude", EXCLUDES.values(), ids=EXCLUDES)
@pytest.mark.parametrize(("first", "second"), [(a, b) for a, b in product([*WRAPPERS, None], repeat=2) if a != b])
@pytest.mark.parametrize("kind", [DecoupledWeightDecay, LayerAdaptation])
def test_what_was_said_of_a_parameter_holds_for_the_one_in_its_place(exclude, first, second, kind):
    """As sharding does, every parameter is replaced after the stack was built: the run must be the one without."""

    def run(replaced):
        torch.manual_seed(0)
        model = nn.Linear(3, 2, dtype=torch.float64)
        options = {"rate": 0.5} if kind is DecoupledWeightDecay else {}
        optimizer = SGD(model.named_parameters(), lr=0.1)
        for layer in (first, None, second):
            if layer is None:
                optimizer = kind(optimizer, exclude=exclude(model), **options)
            elif layer in WRAPPERS:
                optimizer = WRAPPERS[layer](optimizer)
        if replaced:
            for name, p in list(model.named_parameters()):
                setattr(model, name, nn.Parameter(p.detach().clone()))
            optimizer.param_groups[0]["params"] = list(model.parameters())
        for step in range(4):
            for p in model.parameters():
                p.grad = torch.full_like(p, 1.0 + step)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(run(replaced=True), run(replaced=False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["masked", "strict"])
def test_lazy_knows_a_table_that_was_replaced(mode):
    p, new = table(), table()
    optimizer = Lazy(SGD([p], lr=0.1, momentum=0.9), [p], mode=mode)
    optimizer.param_groups[0]["params"] = [new]
    optimizer.mark(new, torch.tensor([2]))
    new.grad = torch.ones_like(new)
    optimizer.step()
    assert (new != table()).any(1).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="none of those"):
        optimizer.mark(p, torch.tensor([0]))


def test_a_parameter_that_only_moved_within_its_group_is_not_mistaken():
    p, q = table(), table()
    optimizer = DecoupledWeightDecay(SGD([p, q], lr=0.1), 0.5, exclude=p)
    optimizer.param_groups[0]["params"] = [q, p]
    for r in (p, q):
        r.grad = torch.zeros_like(r)
    optimizer.step()
    assert torch.equal(p, table())
    torch.testing.assert_close(q, table() * 0.95)


# another optimizer's state

KINDS = {name: INNER[name] for name in INNER if name not in {"adax coupled", "layers", "stranger"}}


@pytest.mark.parametrize(("saved", "loaded"), [(a, b) for a, b in product(KINDS, repeat=2) if a != b])
@pytest.mark.parametrize("wrapped", ["both", "loaded"])
def test_the_state_of_another_optimizer_is_refused(saved, loaded, wrapped):
    p, q = table(), table()
    one, other = KINDS[saved]([p]), KINDS[loaded]([q])
    one, other = EMA(one) if wrapped == "both" else one, EMA(other)
    p.grad = torch.ones_like(p)
    one.step()
    names = [type(unwrap(o)).__name__ for o in (one, other)]
    before = copy.deepcopy(other.state_dict())
    if wrapped == "loaded" and {*names} == {"Adam", "AdamW"}:
        return  # with the same settings and the same state: one is as good as the other
    with pytest.raises(CheckpointError, match=rf"{names[0]}\b.*this optimizer is {names[1]}\b"):
        other.load_state_dict(one.state_dict())
    now = other.state_dict()
    assert now["param_groups"] == before["param_groups"]
    assert now["state"].keys() == before["state"].keys()


@pytest.mark.parametrize("make", [INNER["adafactor"], INNER["adax"]])
def test_our_own_optimizers_refuse_a_stranger_s_state(make):
    p, q = table(), table()
    adam = Adam([q])
    q.grad = torch.ones_like(q)
    adam.step()
    optimizer = make([p])
    with pytest.raises(CheckpointError, match=f"Adam.*this optimizer is {type(optimizer).__name__}"):
        optimizer.load_state_dict(adam.state_dict())
    assert not optimizer.state


# how it ages

HALVES = [torch.bfloat16, torch.float16]


def small_steps(make, dtype, updates=400):
    """Weights of 1 that are asked to move by one unit in the last place now and then."""
    p = nn.Parameter(torch.ones(8, 4, dtype=dtype))
    optimizer = make([p])
    unit = torch.finfo(dtype if dtype in HALVES else torch.bfloat16).eps
    for step in range(updates):
        p.grad = torch.full_like(p, -unit if step % 5 == 0 else 0.0)
        optimizer.step()
    return p.detach().double(), {n: t.double() for (_, n), t in tensors_of(optimizer).items()}


SLOW = {
    "lookahead": lambda p: Lookahead(SGD(p, lr=1.0), 5),
    "lookahead small alpha": lambda p: Lookahead(SGD(p, lr=1.0), 5, alpha=0.1),
    "lookahead pullback": lambda p: Lookahead(SGD(p, lr=1.0, momentum=0.5), 5, momentum="pullback"),
    "lookahead of lookahead": lambda p: Lookahead(Lookahead(SGD(p, lr=1.0), 5), 2),
    "ema": lambda p: EMA(SGD(p, lr=1.0), 0.99),
    "ema of lookahead": lambda p: EMA(Lookahead(SGD(p, lr=1.0), 5), 0.99),
    "lookahead of accumulation": lambda p: Lookahead(GradientAccumulation(SGD(p, lr=5.0), 5), 2),
    "accumulation": lambda p: GradientAccumulation(SGD(p, lr=5.0), 5),
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_a_run_in_half_precision_tracks_the_one_in_single(make):
    (got, state), (want, kept) = (small_steps(make, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert (want - 1).min() > 0.05  # it went somewhere
    unit = torch.finfo(torch.bfloat16).eps * float(want.max())
    assert (got - want).abs().max() <= 2 * unit
    for name in kept.keys() & {"kexue.lookahead.slow", "kexue.ema.shadow"}:
        assert (state[name] - kept[name]).abs().max() <= 2 * unit


def test_a_sum_of_micro_batches_loses_nothing_in_half_precision():
    """256 gradients of 1 and one of 2^-8 each: in bfloat16 the sum would stop at 256."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = GradientAccumulation(SGD([p], lr=1.0), 512, average=False)
    for _ in range(512):
        p.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()
    assert p.item() == -512


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("make", [lambda p: Adafactor(p, lr=0.01, beta1=0.9), lambda p: AdaX(p, lr=0.01)])
def test_moments_stay_in_single_precision(dtype, make):
    p = nn.Parameter(torch.ones(3, 4, dtype=dtype))
    optimizer = Lookahead(make([p]), momentum="pullback")
    for _ in range(6):
        p.grad = torch.ones_like(p)
        optimizer.step()
    again = Lookahead(make([p]), momentum="pullback")
    again.load_state_dict(optimizer.state_dict())
    for held in (optimizer, again):
        assert {t.dtype for t in tensors_of(held).values()} == {torch.float32}


# in whatever mode it is called

MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
PLAIN = {name: make for name, make in INNER.items() if name in {"sgd", "adam", "adax", "adafactor"}}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("wrap", [lambda o: o, *WRAPPERS.values()], ids=["alone", *WRAPPERS])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_first_step_in_any_mode_is_a_step_like_any_other(make, wrap, mode):
    def run(context):
        p = nn.Parameter(torch.linspace(-1, 1, 12).reshape(6, 2))
        optimizer = wrap(make([p]))
        if context is not None and optimizer is unwrap(optimizer) and not hasattr(optimizer, "moments"):
            return None  # torch's own
        for step in range(6):
            with context() if context is not None and step < 3 else torch.no_grad():
                p.grad = torch.full_like(p, 0.5 + step)
                optimizer.step()
            if step == 2:
                with context() if context is not None else torch.no_grad():
                    optimizer.load_state_dict(optimizer.state_dict())
        (p.sum() * 2).backward()
        return p.detach()

    got = run(mode)
    assert got is None or torch.equal(got, run(None))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_closure_has_gradients_in_inference_mode(wrap):
    p = table()
    optimizer = wrap(SGD([p], lr=0.1))

    def closure():
        p.grad = None
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.inference_mode():
        for _ in range(2):
            assert optimizer.step(closure) > 0
    assert not torch.equal(p, table())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_gradient_scaler_changes_nothing_and_skips_what_overflows(wrap):
    """A scale that is a power of two is undone exactly; a step it refuses leaves weights and state as they were."""

    def run(scaled):
        p = nn.Parameter(torch.linspace(-1, 1, 12).reshape(6, 2))
        optimizer = wrap(Adam([p], lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(7):
            p.grad = None
            scaler.scale((p * (1.0 + step)).sum()).backward()
            if scaled and step == 3:
                held = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
                grads = p.grad.clone()
                p.grad[0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
                assert torch.equal(p, held[0])
                assert optimizer.state_dict()["param_groups"] == held[1]["param_groups"]
                p.grad = grads / 2  # the scale was halved
            scaler.step(optimizer)
            scaler.update()
        return p.detach()

    assert torch.equal(run(scaled=True), run(scaled=False))


@pytest.mark.parametrize("kind", [Adafactor, AdaX])
def test_settings_known_of_our_optimizers_are_those_of_their_constructors(kind):
    settings = set(inspect.signature(kind).parameters) - {"params", "foreach", "maximize"}
    assert OURS[kind.__name__] == settings
