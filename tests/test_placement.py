"Tensors from anywhere reach a model, and what it makes goes back; the device `meta` plays the other place."
from typing import NamedTuple

import torch
from torch import nn

from vqgen.placement import best_device, device_of, model_device, moved, on_model_device


class Pair(NamedTuple):
    ids: torch.Tensor
    features: torch.Tensor | None = None


class Echo(nn.Module):
    "Gives back its arguments, and keeps where they were."
    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device=device))
        self.seen = []

    @on_model_device
    def give(self, *values, **named):
        "The values, as they come."
        self.seen = [device_of(value) for value in (*values, *named.values())]
        return (*values, *named.values())

    @on_model_device
    def stream(self, images, grad=False):
        with torch.set_grad_enabled(grad):
            for number in range(3): yield self.weight + number


def places(values): return [str(device_of(value)) for value in values]


def test_every_argument_moves_and_comes_back():
    "Also one that is not where the first is, and one given by name."
    model = Echo("meta")
    here, there = torch.ones(2, device="meta"), torch.ones(3)
    back = model.give(here, there, named=there)
    assert model.seen == [torch.device("meta")] * 3 and places(back) == ["meta"] * 3
    back = Echo().give(Pair(torch.ones(2)), [torch.ones(1), "a word"], {"a": (there,)}, text="a caption")
    assert places(back) == ["cpu", "cpu", "cpu", "None"] and back[3] == "a caption"


def test_named_tuples_keep_their_type():
    "And a part that is None stays None."
    pair = moved(Pair(torch.ones(2, 3)), "meta")
    assert type(pair) is Pair and pair.ids.device.type == "meta" and pair.features is None


def test_modules_are_never_moved():
    "An argument that is a model belongs to somebody else, who would find it gone."
    other = nn.Linear(2, 2)
    found = moved([other, torch.ones(1)], "meta")
    assert found[0] is other and other.weight.device.type == "cpu" and found[1].device.type == "meta"
    assert device_of(other) is None and device_of([other, torch.ones(1)]).type == "cpu"


def test_generators_stay_on_the_cpu():
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    assert moved(generators, "meta") == generators and device_of(generators) is None
    first, _ = Echo("meta").give(generators, torch.ones(1, device="meta"))
    assert first == generators and all(generator.device.type == "cpu" for generator in first)


def test_streams_are_moved_as_they_are_read():
    "Lazily, and each part with the grad mode that its maker chose."
    frames = Echo().stream(torch.ones(1))
    assert [frame.requires_grad for frame in frames] == [False] * 3
    frames = Echo().stream(torch.ones(1), grad=True)
    assert next(frames).requires_grad and torch.is_grad_enabled()
    read = []
    lazy = moved((read.append(i) or torch.full((1,), i) for i in range(3)), "meta")
    assert not read and next(lazy).device.type == "meta" and read == [0]


def test_without_tensors_nothing_moves():
    assert Echo("meta").give("words", 3, None) == ("words", 3, None)
    assert device_of({}) is None and device_of(([], {"a": None})) is None


def test_gradients_pass_the_move():
    "A loss that goes back to the caller still reaches the weights."
    class Sum(nn.Linear):
        @on_model_device
        def loss(self, images): return self(images).sum()
    model = Sum(2, 1)
    model.loss(torch.ones(3, 2)).backward()
    assert model.weight.grad.eq(3).all()


def test_where_a_model_is():
    buffered = nn.BatchNorm1d(2, affine=False).to("meta")
    assert model_device(Echo("meta")) == model_device(buffered) == torch.device("meta")
    assert model_device(nn.ReLU()) == torch.device("cpu")
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_method_keeps_its_name_and_docstring():
    assert Echo.give.__name__ == "give" and Echo.give.__doc__ == "The values, as they come."
