"""A model on a GPU takes tensors from the CPU, and gives back what it makes there.

Without a GPU, PyTorch's fake tensors stand in for one: they have a device and a shape, and complain like the
real ones where two devices meet. With one, `pytest -m cuda` does the same in earnest.
"""
import dataclasses
from itertools import chain

import pytest
import torch
from tiny import CONFIG, coded, generators, splits
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from vqgen.evaluation.metrics import AttributeClassifier, ClassifierConfig
from vqgen.placement import model_device, moved
from vqgen.priors.build import PRIORS, new_prior
from vqgen.priors.text import tokenize
from vqgen.vqvae.model import VQVAE

GPU = "gpu"   # a device of that name, which cannot compute: fake tensors do not ask it to
_setup_privateuseone_for_python_backend(GPU)
torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16]
CAPTIONS = ["a person with red hair", "a person with a green mohawk and sunglasses"]


def new_model(name):
    vqvae, tokenizer, *_ = coded()
    torch.manual_seed(0)
    if name == "vqvae": return VQVAE(CONFIG.vqvae.model).eval()
    if name == "classifier":
        attributes = {"hair": ["red", "green"], "hat": ["none", "blue", "red"]}
        return AttributeClassifier(ClassifierConfig(attributes=attributes, image_size=16)).eval()
    section = getattr(CONFIG, name.replace("-", "_")).model
    return new_prior(name, section, vqvae, tokenizer, splits()[0].image_size).eval()


def inputs():
    "Images, codes, labels and text, on the CPU."
    vqvae, tokenizer, *_ = coded()
    images = splits()[0].batch(range(2))
    return {"images": images, "codes": vqvae.encode(images), "labels": torch.tensor([[0, 1], [1, 2]]),
            "text": tokenize(tokenizer, CAPTIONS)}


METHODS = {
    ("vqvae", "encode"): lambda model, given: model.encode(given["images"]),
    ("vqvae", "decode"): lambda model, given: model.decode(given["codes"]),
    ("vqvae", "reconstruct"): lambda model, given: model.reconstruct(given["images"]),
    ("vqvae", "loss"): lambda model, given: model.loss(given["images"]),
    ("classifier", "loss"): lambda model, given: model.loss(given["images"], given["labels"]),
    ("classifier", "read"): lambda model, given: model.read(given["images"]),
    **dict.fromkeys([(name, "loss") for name in PRIORS],
                    lambda model, given: model.loss(given["codes"], given["text"])),
    **dict.fromkeys([(name, "generate") for name in PRIORS],
                    lambda model, given: model.generate(given["text"], generators(0, 1))),
    **dict.fromkeys([(name, "stream") for name in PRIORS],
                    lambda model, given: list(model.stream(given["text"], generators(0, 1)))),
    **dict.fromkeys([(name, "bits_per_code") for name in PRIORS],
                    lambda model, given: model.bits_per_code(given["codes"], given["text"])),
    ("cftn-v2", "nats"): lambda model, given: model.nats(given["codes"], given["text"], steps=4),
    ("cftn-v2", "caption"): lambda model, given: model.caption(given["codes"]),
}
READS = {("classifier", "read"), ("cftn-v2", "caption")}   # their results are words: values must be known


def tensors(value):
    "All tensors in a nested result."
    if isinstance(value, torch.Tensor): return [value]
    if isinstance(value, dict): value = list(value.values())
    if not isinstance(value, (list, tuple)): return []
    return list(chain.from_iterable(map(tensors, value)))


def to_fake_gpu(model):
    "Put empty parameters and buffers on a GPU in the place of those of `model`."
    for part in model.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None: continue
                empty = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                if table is part._parameters: empty = torch.nn.Parameter(empty, value.requires_grad)
                table[name] = empty
    return model


def fake(value, mode):
    "`value` (a tensor, or a dataclass of tensors such as `Text`) as fake tensors on the CPU."
    if isinstance(value, torch.Tensor): return mode.from_tensor(value)
    if not dataclasses.is_dataclass(value): return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return type(value)(**{name: fake(part, mode) for name, part in fields.items()})


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_on_a_gpu_that_is_not_there(case):
    model, given = new_model(case[0]), inputs()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        to_fake_gpu(model)
        given = {name: fake(value, mode) for name, value in given.items()}
        assert model_device(model).type == GPU
        if case in READS:
            with pytest.raises(DataDependentOutputException): METHODS[case](model, given)
        else: assert {tensor.device.type for tensor in tensors(METHODS[case](model, given))} == {"cpu"}


@pytest.mark.parametrize("name", ["vqvae", *PRIORS])
def test_a_training_step_on_a_gpu_that_is_not_there(name):
    "Forward and backward in training, on tensors of the GPU: without a look at a value, so without waiting."
    model, given = new_model(name).train(), inputs()
    METHODS[name, "loss"](model, given)   # the first step of a VQ-VAE looks whether its codebook has begun
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        to_fake_gpu(model)
        given = moved({key: fake(value, mode) for key, value in given.items()}, GPU)
        loss, metrics = METHODS[name, "loss"](model, given)
        loss.backward()
        assert {tensor.device.type for tensor in tensors([loss, metrics])} == {GPU}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_on_a_gpu(case):
    "Everything comes back to the CPU; from the GPU it stays there; codes are those of the CPU."
    model, given = new_model(case[0]), inputs()
    expected = METHODS[case](model, given)
    model.cuda()
    found = METHODS[case](model, given)
    assert {tensor.device.type for tensor in tensors(found)} <= {"cpu"}
    assert {tensor.device.type for tensor in tensors(METHODS[case](model, moved(given, "cuda")))} <= {"cuda"}
    if case[1] in ("encode", "generate"): assert (found == expected).float().mean() > 0.9
