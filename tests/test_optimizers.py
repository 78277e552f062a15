"Whatever the optimizer, a parameter is trained once, at its own rate; Muon's many matrices as if one by one."
import io
import math
from itertools import chain

import pytest
import torch
from tiny import CONFIG, changed, coded, splits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vqgen.config import TrainConfig
from vqgen.priors.build import PRIORS, new_prior
from vqgen.training.optimizers import (
    POLYNOMIALS,
    Muon,
    MuonAdamW,
    gram_newton_schulz,
    make_optimizer,
    newton_schulz,
    orthogonalise,
    product_dtype,
)

MUON = TrainConfig(optimizer="muon", learning_rate=1e-3, matrix_learning_rate=0.02)
LOWEST = 0.44   # about what the polynomials make of a hundredth of the largest
SHAPES = [(8, 8), (8, 8), (16, 8), (8, 16), (16, 8), (8, 8), (24, 8)]


def prior(name):
    vqvae, tokenizer, *_ = coded()
    section = getattr(CONFIG, name.replace("-", "_"))
    return new_prior(name, section.model, vqvae, tokenizer, splits()[0].image_size)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(name, optimizer):
    model = prior(name)
    groups = make_optimizer(model, changed(MUON, optimizer=optimizer)).param_groups
    found = chain.from_iterable(group["params"] for group in groups)
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("name", PRIORS)
def test_muon_leaves_embeddings_heads_and_vectors_to_adamw(name):
    model = prior(name)
    groups = [group for group in make_optimizer(model, MUON).param_groups if group["lr"] == 0.02]
    inner = set(map(id, chain.from_iterable(group["params"] for group in groups)))
    names = "head", "tokens", "positions", "shift", "lstm."
    for part, parameter in model.named_parameters():
        outside = parameter.ndim != 2 or part == "feedback" or any(name in part for name in names)
        assert (id(parameter) in inner) == (not outside), part


def test_a_schedule_moves_both_and_a_saved_state_goes_on():
    torch.manual_seed(0)
    twins = [nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    inputs = torch.randn(8, 6)

    def steps(model, optimizer, schedule, count):
        for _ in range(count):
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    def begin(model):
        optimizer = make_optimizer(model, MUON, {"1.": 0.5})
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    optimizer, schedule = begin(twins[0])
    assert isinstance(optimizer, MuonAdamW)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.001, 0.02, 0.5]
    steps(twins[0], optimizer, schedule, 6)
    optimizer, schedule = begin(twins[1])
    steps(twins[1], optimizer, schedule, 3)
    states = [part.state_dict() for part in (optimizer, schedule)]
    optimizer, schedule = begin(twins[1])
    for part, state in zip((optimizer, schedule), states): part.load_state_dict(state)
    steps(twins[1], optimizer, schedule, 3)
    assert all(a.equal(b) for a, b in zip(twins[0].parameters(), twins[1].parameters()))


def by_singular_values(matrix):
    "What `newton_schulz` is to find: the polynomials applied to each singular value, in float64."
    U, values, V = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.pow(4).sum().pow(1 / 4).clamp(min=1e-7)
    for coefficients in POLYNOMIALS:
        values = sum(coefficient * values ** (2 * i + 1) for i, coefficient in enumerate(coefficients))
    return (U * values) @ V


@pytest.mark.parametrize("find", [newton_schulz, gram_newton_schulz, orthogonalise])
@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48), (7, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e5])
def test_polynomials_of_singular_values(find, shape, scale):
    torch.manual_seed(0)
    matrices = scale * torch.randn(4, *shape)
    wanted = torch.stack([by_singular_values(matrix) for matrix in matrices]).float()
    torch.testing.assert_close(find(matrices), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_matrices_of_few_directions_stay_bounded(shape, dtype, atol):
    torch.manual_seed(0)
    rows, columns = shape
    one = torch.randn(rows, 1) @ torch.randn(1, columns)
    matrices = torch.stack([one, torch.zeros(shape), torch.ones(shape), one + 1e-3 * torch.randn(shape)])
    found = orthogonalise(matrices.to(dtype)).float()
    assert found.isfinite().all() and not found[1].any()
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.8 and values[0, 0] > 0.4 and values[2, 0] > 0.4
    assert values[0, 1:].max() < atol and values[2, 1:].max() < atol


def test_wide_directions_become_alike():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(8, 80, 160)))
    assert LOWEST < values.min() and values.max() < 2 - LOWEST


def new_matrices():
    torch.manual_seed(1)
    return [nn.Parameter(0.1 * torch.randn(shape)) for shape in SHAPES]


def begin(matrices):
    "Muon over two groups, and a schedule."
    groups = [{"params": matrices[:3], "lr": 0.02, "weight_decay": 0.01},
              {"params": matrices[3:], "lr": 0.5, "weight_decay": 0.0, "momentum": 0.8}]
    optimizer = Muon(groups)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def set_gradients(matrices, step):
    generator = torch.Generator().manual_seed(step)
    for matrix in matrices: matrix.grad = torch.randn(matrix.shape, generator=generator)
    if step % 2: matrices[-1].grad = None


def train(matrices, optimizer, schedule, steps):
    for step in steps:
        set_gradients(matrices, step)
        optimizer.step()
        schedule.step()


def train_one_by_one(matrices, steps):
    "The same as `train(matrices, *begin(matrices), steps)`, matrix by matrix, with each written out."
    means = [torch.zeros_like(matrix) for matrix in matrices]
    for step in steps:
        set_gradients(matrices, step)
        for i, (matrix, mean) in enumerate(zip(matrices, means)):
            rate, decay = (0.02, 0.01) if i < 3 else (0.5, 0.0)
            momentum = 0.95 if i < 3 else 0.8
            rate = rate / (1 + step)
            if matrix.grad is None: continue
            mean.copy_(momentum * mean + (1 - momentum) * matrix.grad)
            ahead = momentum * mean + (1 - momentum) * matrix.grad
            length = rate * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
            matrix.data = matrix.data * (1 - rate * decay) - length * by_singular_values(ahead).float()


def test_all_at_once_as_one_by_one():
    together, alone = new_matrices(), new_matrices()
    train(together, *begin(together), range(8))
    train_one_by_one(alone, range(8))
    for a, b in zip(together, alone): torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_all_but_the_polynomials_is_torchs(monkeypatch):
    "With our `orthogonalise` in place of its own, `torch.optim.Muon` takes the same steps."
    import torch.optim._muon as module
    def ours_for_one(matrix, *options): return orthogonalise(matrix[None])[0]
    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", ours_for_one)
    ours, theirs = new_matrices(), new_matrices()
    for matrices, kind in ((ours, Muon), (theirs, torch.optim.Muon)):
        optimizer = kind(matrices, lr=0.1, weight_decay=0.1, momentum=0.9)
        for step in range(8):
            set_gradients(matrices, step)
            optimizer.step()
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_saved_state_goes_on_bit_by_bit():
    whole, halves = new_matrices(), new_matrices()
    train(whole, *begin(whole), range(9))
    optimizer, schedule = begin(halves)
    train(halves, optimizer, schedule, range(4))
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), schedule.state_dict()), file)
    file.seek(0)
    optimizer, schedule = begin(halves)
    for part, state in zip((optimizer, schedule), torch.load(file)): part.load_state_dict(state)
    train(halves, optimizer, schedule, range(4, 9))
    assert all(a.equal(b) for a, b in zip(whole, halves))
    assert all("momentum_buffer" in optimizer.state[matrix] for matrix in halves)


class Operations(TorchDispatchMode):
    "Notes the name of each operation."
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_matrices_of_a_shape_share_their_operations():
    "As many operations for a hundred matrices as for ten; none that makes the processor wait for the device."
    counts = []
    for count in (10, 100):
        matrices = [nn.Parameter(torch.randn(8, 4)) for _ in range(count)]
        optimizer = Muon(matrices, lr=0.1)
        for step in range(2):
            set_gradients(matrices, 2 * step)
            with Operations() as operations: optimizer.step()
        counts.append(len(operations.names))
        assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & set(operations.names)
    assert counts[0] == counts[1] < 75


def test_steps_need_no_values():
    "Fake tensors have none: a step that reads one fails."
    with FakeTensorMode():
        matrices = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        for matrix in matrices: matrix.grad = torch.randn(matrix.shape)
        Muon(matrices).step()


@pytest.mark.parametrize("capability, dtype",
                         [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_bfloat16_where_it_is_multiplied_in_hardware(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert product_dtype(torch.device("cuda")) == dtype
    assert product_dtype(torch.device("cpu")) == product_dtype(torch.device("mps")) == torch.float32
