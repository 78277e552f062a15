"Whatever the optimizer, a parameter is trained once, at the rate it was given; and a judge is not fooled."
import pytest
import torch
from tiny import CONFIG, changed, coded, refusal, splits
from torch import nn

from vqgen.config import TrainConfig
from vqgen.training.optimizers import MuonAdamW, make_optimizer
from vqgen.priors.build import PRIORS, new_prior

MUON = TrainConfig(optimizer="muon", learning_rate=1e-3, matrix_learning_rate=0.02)


def prior(name):
    vqvae, tokenizer, *_ = coded()
    return new_prior(name, getattr(CONFIG, name.replace("-", "_")).model, vqvae, tokenizer, splits()[0].image_size)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(name, optimizer):
    model = prior(name)
    groups = make_optimizer(model, changed(MUON, optimizer=optimizer)).param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("name", PRIORS)
def test_muon_leaves_embeddings_heads_and_vectors_to_adamw(name):
    model = prior(name)
    inner = {id(parameter) for group in make_optimizer(model, MUON).param_groups if group["lr"] == 0.02 for parameter in group["params"]}
    for part, parameter in model.named_parameters():
        outside = parameter.ndim != 2 or "head" in part or "tokens" in part or "positions" in part or "shift" in part or part == "feedback" or "lstm." in part
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
    assert isinstance(optimizer, MuonAdamW) and sorted({group["lr"] for group in optimizer.param_groups}) == [0.001, 0.02, 0.5]
    steps(twins[0], optimizer, schedule, 6)
    optimizer, schedule = begin(twins[1])
    steps(twins[1], optimizer, schedule, 3)
    states = [part.state_dict() for part in (optimizer, schedule)]
    optimizer, schedule = begin(twins[1])
    for part, state in zip((optimizer, schedule), states): part.load_state_dict(state)
    steps(twins[1], optimizer, schedule, 3)
    assert all(a.equal(b) for a, b in zip(twins[0].parameters(), twins[1].parameters()))


def test_muon_without_torchs_muon_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    assert "2.9" in refusal(make_optimizer, nn.Linear(3, 3), MUON)
