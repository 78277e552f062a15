"The VQ-VAE: exact codes, a codebook that follows its vectors and stays alive, and no harm from bad input."
import contextlib
import copy
import importlib.util

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgen.config import TrainConfig, VQVAEConfig, parse_config
from vqgen.errors import VQGenError
from vqgen.training.checkpoints import load_model, save_model
from vqgen.training.loop import train
from vqgen.vqvae.losses import psnr, reconstruction_loss, ssim
from vqgen.vqvae.model import VQVAE
from vqgen.vqvae.quantizer import (
    VectorQuantizerEMA,
    kmeans,
    nearest_codes,
    reset_codes,
    rotation_trick,
    sample_rows,
    update_codes,
    usage_and_perplexity,
)

SMALL = dict(hidden_channels=16, residual_channels=8, residual_layers=1, codebook_size=32, code_dim=8)


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)


def small_model(**changes): return VQVAE(VQVAEConfig(**{**SMALL, **changes}))


def buffers(module): return {name: value.clone() for name, value in module.named_buffers()}


def same(before, module): return all(value.equal(before[name]) for name, value in module.named_buffers())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 2100), size=st.integers(1, 70), dim=st.integers(1, 20),
       shift=st.sampled_from([0.0, 50.0]), seed=st.integers(0, 2**31))
def test_codes_equal_brute_force(rows, size, dim, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=generator) + shift
    table = torch.randn(size, dim, generator=generator) + shift
    distances = torch.cdist(z.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    codes = nearest_codes(z, table)
    assert codes.shape == (rows,) and codes.dtype == torch.int64
    chosen, best = distances.gather(1, codes[:, None])[:, 0], distances.min(1).values
    # a wrong choice is forgiven only where two distances are as good as equal
    assert (chosen - best <= 1e-5 * best + 1e-5).all()


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), size=st.integers(1, 70), dim=st.integers(1, 9), height=st.integers(1, 6),
       width=st.integers(1, 6), gradient=st.sampled_from(["straight-through", "rotation"]),
       dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
def test_any_shape_size_and_type(batch, size, dim, height, width, dtype, gradient):
    quantizer = VectorQuantizerEMA(size, dim, gradient=gradient).train()
    z = torch.randn(batch, dim, height, width).to(dtype).requires_grad_()
    for _ in range(3): result = quantizer(z)
    (result.quantized.float().square().mean() + result.loss).backward()
    assert result.quantized.shape == z.shape and result.quantized.dtype == dtype
    assert result.codes.shape == (batch, height, width)
    assert 0 <= result.codes.min() and result.codes.max() < size
    assert result.loss.isfinite() and z.grad.isfinite().all()
    quantizer.eval()
    assert quantizer(z).quantized.equal(quantizer.decode(quantizer.encode(z)).to(dtype))


def test_kmeans_centres_are_the_means_of_their_rows():
    rows = torch.randn(600, 4)
    centres, counts = kmeans(rows, 6, rounds=200)
    codes = nearest_codes(rows, centres)
    assert codes.bincount(minlength=6).eq(counts).all() and counts.min() > 0
    means = torch.stack([rows[codes == code].mean(0) for code in range(6)])
    torch.testing.assert_close(centres, means, rtol=0, atol=1e-4)


def test_kmeans_with_fewer_rows_than_codes():
    centres, _ = kmeans(torch.randn(5, 3), 16)
    assert centres.shape == (16, 3) and centres.isfinite().all()


def test_draws_depend_only_on_the_random_state():
    rows, weights = torch.randn(100, 3), torch.rand(100)
    torch.manual_seed(7)
    first = sample_rows(rows, weights, 10)
    torch.manual_seed(7)
    assert sample_rows(rows, weights, 10).equal(first)


def test_a_used_code_moves_to_the_mean_of_its_inputs():
    quantizer = VectorQuantizerEMA(2, 3, decay=0.5, revive_after=0)
    reset_codes(quantizer, torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]]), torch.ones(2))
    quantizer.steps.fill_(1000)
    rows = torch.randn(40, 3) + torch.tensor([[-5.0, 1, 2]] * 20 + [[5.0, -1, 0]] * 20)
    for _ in range(60): quantizer(rows.T.reshape(1, 3, 5, 8))
    means = torch.stack([rows[:20].mean(0), rows[20:].mean(0)])
    torch.testing.assert_close(quantizer.codebook, means, rtol=0, atol=1e-4)


def test_revived_codes_are_reset_and_stay_alive():
    quantizer = VectorQuantizerEMA(16, 4, decay=0.9)
    reset_codes(quantizer, torch.full((16, 4), 1000.0) + torch.rand(16, 4), torch.ones(16))   # all far off
    quantizer.steps.fill_(1000)
    for step in range(120):
        quantizer(torch.randn(2, 4, 8, 8))
        if step == 60:
            assert quantizer.codebook.abs().max() < 10          # nothing pulls one back to where it died
            means = quantizer.ema_sum / quantizer.ema_count[:, None]
            torch.testing.assert_close(means, quantizer.codebook, rtol=0, atol=1e-3)
            revived = quantizer.codebook.clone()
    assert (quantizer.ema_count > 0.03 * quantizer.ema_count.mean()).all()
    assert (quantizer.codebook - revived).norm(dim=1).max() < 2.5       # they drift, but none was moved anew
    assert len(quantizer.eval().encode(torch.randn(16, 4, 8, 8)).unique()) == 16


def test_revival_moves_dead_codes_onto_current_vectors():
    quantizer = VectorQuantizerEMA(8, 2, decay=0.5)
    reset_codes(quantizer, torch.full((8, 2), 50.0), torch.zeros(8))
    quantizer.steps.fill_(1000)
    z = torch.randn(1, 2, 4, 4)
    quantizer(z)
    rows = z.movedim(1, -1).reshape(-1, 2)
    torch.testing.assert_close(quantizer.codebook[0], rows.mean(0))                     # nearest to all
    distances = torch.cdist(quantizer.codebook[1:], rows)
    assert distances.min(1).values.max() < 1e-5                 # the others sit on vectors of the batch


def test_a_reset_touches_the_codes_of_its_mask_only():
    quantizer = VectorQuantizerEMA(4, 3)
    before, which = buffers(quantizer), torch.tensor([False, True, False, True])
    reset_codes(quantizer, torch.full((4, 3), 7.0), torch.tensor(5.0), which)
    assert quantizer.codebook[which].eq(7).all() and quantizer.ema_count[which].eq(5).all()
    assert quantizer.ema_sum[which].eq(35).all()
    for name in ("codebook", "ema_count", "ema_sum"):
        assert getattr(quantizer, name)[~which].equal(before[name][~which])


def test_an_update_without_dead_codes_moves_none_but_to_the_mean():
    quantizer = VectorQuantizerEMA(3, 2, revive_after=0.03)
    reset_codes(quantizer, torch.tensor([[0.0, 0], [5, 0], [0, 5]]), torch.tensor(4.0))
    rows = quantizer.codebook.repeat(4, 1) + 0.1 * torch.randn(12, 2)
    codes = torch.arange(3).repeat(4)
    update_codes(quantizer, rows, codes)
    means = torch.stack([rows[codes == code].mean(0) for code in range(3)])
    torch.testing.assert_close(quantizer.codebook, means, rtol=1e-4, atol=1e-4)     # forgets all
    assert quantizer.steps == 1 and quantizer.counts.tolist() == [[0] * 3, [4] * 3]


def test_evaluation_changes_no_buffer():
    model = small_model()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    model.train().loss(images)
    before = buffers(model)
    model.train().encode(images)
    model.eval().loss(images)
    model.encode(images)
    assert same(before, model)
    model.train().loss(images.flip(-1))
    assert not same(before, model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("started", [False, True])
def test_bad_numbers_are_refused_before_anything_changes(bad, started):
    model = small_model().train()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    if started: model.loss(images)
    before = buffers(model)
    images[1, 2, 3, 4] = bad
    with pytest.raises(VQGenError, match="NaN or infinity"): model.loss(images)
    assert same(before, model)
    with pytest.raises(VQGenError, match="NaN or infinity"): model.eval().encode(images)


def test_gradients_reach_every_parameter():
    model = small_model().train()
    loss, metrics = model.loss(torch.rand(4, 3, 16, 16) * 2 - 1)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert set(metrics) == {"reconstruction", "commitment", "usage", "perplexity", "psnr"}
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())
    assert 1 <= metrics["perplexity"] <= 32


def test_straight_through_passes_the_gradient_unchanged():
    quantizer = VectorQuantizerEMA(8, 4).train()
    z, wish = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(2, 4, 3, 3)
    table = quantizer.eval().codebook
    result = quantizer(z)
    (result.quantized * wish).sum().backward()
    assert z.grad.equal(wish)
    assert result.quantized.equal(table[result.codes].movedim(-1, 1))      # the codes' own values, to the bit


def test_rotation_turns_and_scales_the_gradient():
    rows = torch.randn(50, 6, requires_grad=True)
    nearest, wish = torch.randn(50, 6), torch.randn(50, 6)
    result = rotation_trick(rows, nearest)
    assert result.equal(nearest)
    (result * wish).sum().backward()
    stretch = nearest.norm(dim=1) / rows.detach().norm(dim=1)
    lengths = rows.grad.norm(dim=1), stretch * wish.norm(dim=1)
    angles = (torch.cosine_similarity(*pair, dim=1) for pair in ((rows.grad, rows.detach()), (wish, nearest)))
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-5)      # a rotation keeps lengths
    torch.testing.assert_close(*angles, rtol=1e-4, atol=1e-5)       # and angles


def test_usage_is_counted_over_an_epoch():
    quantizer = VectorQuantizerEMA(4, 1, revive_after=0).train()
    reset_codes(quantizer, torch.tensor([[0.0], [1], [2], [3]]), torch.ones(4))
    quantizer.steps.fill_(1000)
    def look(*values): quantizer(torch.tensor(values).view(1, 1, 1, -1))
    look(0.0, 0.0)
    assert quantizer.usage() == {"usage": 0.25, "perplexity": 1}            # the first epoch so far
    look(1.0, 1.0)
    quantizer.new_epoch()
    look(3.0, 3.0)
    used = quantizer.usage()
    assert used["usage"] == 0.5 and abs(used["perplexity"] - 2) < 1e-5      # the last whole one: 0 and 1
    quantizer.new_epoch()
    assert quantizer.usage()["usage"] == 0.25
    quantizer.eval()(torch.zeros(1, 1, 2, 2))
    assert quantizer.counts.sum() == 2


@pytest.mark.parametrize("counts, usage, perplexity", [([3, 3, 3, 3], 1, 4), ([5, 0, 0, 0], 0.25, 1),
                                                       ([2, 2, 0, 0], 0.5, 2), ([0, 0, 0, 0], 0, 1)])
def test_usage_and_perplexity(counts, usage, perplexity):
    found = torch.stack(usage_and_perplexity(torch.tensor(counts)))
    torch.testing.assert_close(found, torch.tensor([usage, perplexity], dtype=torch.float32))


def test_the_loop_closes_an_epoch_when_all_data_was_seen(tmp_path):
    model, data = small_model(), [{"images": torch.rand(3, 16, 16) * 2 - 1} for _ in range(10)]
    train(model, data, TrainConfig(steps=6, batch_size=4), tmp_path)
    assert model.quantizer.counts.sum(1).tolist() == [8 * 16, 4 * 16]   # ends after 12 and 20 images


@pytest.mark.parametrize("change", [{"codebook_size": 64}, {"code_dim": 4}])
def test_checkpoint_of_another_codebook_is_refused_with_both_numbers(change, tmp_path):
    both = r"32 codes of length 8.*(64 codes of length 8|32 codes of length 4)"
    with pytest.raises(VQGenError, match=both):
        small_model(**change).load_state_dict(small_model().state_dict())
    save_model(small_model(), tmp_path)
    assert load_model(tmp_path, VQVAE).config == small_model().config


def test_errors_of_the_reconstruction_loss():
    original = torch.rand(2, 3, 32, 32) * 2 - 1
    noisy = (original + 0.3 * torch.randn_like(original)).clamp(-1, 1).requires_grad_()

    def only(name):
        config = VQVAEConfig(**{"l1_weight": 0, "mse_weight": 0, f"{name}_weight": 1})
        return reconstruction_loss(noisy, original, config)
    l1, mse, structure = map(only, ("l1", "mse", "ssim"))
    assert l1 == (noisy - original).abs().mean() and mse == (noisy - original).square().mean()
    assert structure == 1 - ssim(noisy, original).mean() and 0 < structure < 1
    together = reconstruction_loss(noisy, original, VQVAEConfig(ssim_weight=0.5))
    torch.testing.assert_close(together, l1 + mse + 0.5 * structure)
    structure.backward()
    assert noisy.grad.isfinite().all() and noisy.grad.abs().sum() > 0
    nothing = {"vqvae": {"model": {"l1_weight": 0, "mse_weight": 0}}}
    with pytest.raises(VQGenError, match="all 0"): parse_config(nothing)


def test_lpips_without_its_weights_says_what_to_do():
    if importlib.util.find_spec("torchvision"): pytest.skip("torchvision is installed")
    with pytest.raises(VQGenError, match="pip install torchvision"):
        small_model(lpips_weight=1.0).loss(torch.rand(1, 3, 64, 64) * 2 - 1)


def test_saved_and_loaded_model_gives_the_same_codes():
    model = small_model().train()
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    for _ in range(3): model.loss(images)
    model.eval()
    other = small_model().eval()
    other.load_state_dict(model.state_dict())
    assert other.encode(images).equal(model.encode(images))
    assert other.decode(model.encode(images)).equal(model.decode(model.encode(images)))
    kept = {f"quantizer.{name}" for name in ("codebook", "ema_count", "ema_sum", "steps", "counts")}
    assert kept <= set(model.state_dict())
    before = buffers(other)
    other.train().loss(images)
    moved = (other.quantizer.codebook - before["quantizer.codebook"]).abs().max()
    assert moved < 5 and other.quantizer.steps == 5      # the start and four batches: no second k-means start


def test_a_loaded_state_decides_whether_k_means_comes_first():
    model, fresh = small_model().train(), small_model().state_dict()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    model.loss(images)
    trained = copy.deepcopy(model.state_dict())
    assert trained["quantizer.steps"] == 2                # the start and a batch
    model.load_state_dict(fresh)
    model.loss(images)
    assert model.quantizer.steps == 2                     # it began anew
    model.load_state_dict(trained)
    model.loss(images)
    assert model.quantizer.steps == 3                     # it went on


def test_reconstruction_is_what_the_codes_say():
    model, images = small_model().train(), torch.rand(4, 3, 16, 16) * 2 - 1
    model.loss(images)
    before = buffers(model)
    copies = model.reconstruct(images.requires_grad_())
    assert not copies.requires_grad and copies.equal(model.decode(model.encode(images)))
    assert same(before, model)


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_a_training_step_never_asks_the_device(gradient, monkeypatch):
    "Where tensors have no values no shape can depend on them, and none can be waited for."
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())   # meta has none
    model = small_model(gradient=gradient).to("meta").train()
    model.quantizer.started = True                               # k-means is behind it
    value, metrics = model.loss(torch.rand(4, 3, 16, 16, device="meta"))
    value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(metrics) == {"reconstruction", "commitment", "usage", "perplexity", "psnr"}


HALVES = [(torch.float16, 1e-6), (torch.float16, 200), (torch.float16, 15_000), (torch.bfloat16, 200),
          (torch.bfloat16, 1e15)]


@pytest.mark.parametrize("dtype, size", HALVES)
def test_half_precision_inputs_stay_finite_and_exact(dtype, size):
    quantizer = VectorQuantizerEMA(16, 4).train()
    z = (torch.randn(2, 4, 8, 8).clamp(-4, 4) * size).to(dtype).requires_grad_()
    for _ in range(3):
        result = quantizer(z)
        (result.loss + result.quantized.float().mean()).backward()
    assert result.quantized.dtype == dtype and result.loss.isfinite() and z.grad.isfinite().all()
    assert all(value.isfinite().all() and value.dtype != dtype for value in quantizer.buffers())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer.eval().encode(z).equal(quantizer.encode(z.float()))
        assert quantizer(z).codes.equal(quantizer.encode(z.float()))


@pytest.mark.parametrize("f", [2, 4, 8, 16])
def test_shapes(f):
    model = small_model(downsample=f)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    model.train().loss(images)
    codes = model.eval().encode(images)
    assert codes.shape == (2, 32 // f, 48 // f) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 32
    pictures = model.decode(codes)
    assert pictures.shape == images.shape and pictures.abs().max() <= 1
    assert pictures.equal(model(images)[0].clamp(-1, 1))
    assert model.grid_size(32) == 32 // f


@pytest.mark.parametrize("codes", [torch.full((1, 4, 4), 32), torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4),
                                   torch.zeros(4, 4, dtype=torch.int64)])
def test_codes_that_the_codebook_has_not_are_refused(codes):
    with pytest.raises(VQGenError, match="expected codes"): small_model().decode(codes)


@pytest.mark.parametrize("f", [2, 4, 8])
def test_without_overlap_a_code_depends_on_its_own_patch_only(f):
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(downsample=f, hidden_channels=16, codebook_size=64, overlap=False)).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = vqvae.encode(images)
    patch = images[1, :, f:2 * f, 2 * f:3 * f].clone()
    others = torch.rand(1, 3, 32, 32) * 2 - 1
    others[0, :, -f:, :f] = patch      # the same patch at another place, among others
    assert vqvae.encode(others)[0, -1, 0] == codes[1, 1, 2]


@pytest.mark.parametrize("shape, words", [((1, 3, 30, 32), "30.*4"), ((1, 3, 32, 33), "33.*4"),
                                          ((1, 1, 32, 32), "RGB"), ((3, 32, 32), "RGB")])
def test_wrong_shapes_are_refused_in_a_sentence(shape, words):
    with pytest.raises(VQGenError, match=words): small_model().encode(torch.zeros(shape))


def test_grid_size_names_both_numbers():
    with pytest.raises(VQGenError, match="50.*4"): small_model().grid_size(50)


def test_psnr_is_the_mean_over_pictures():
    originals = torch.zeros(2, 3, 4, 4)
    pictures = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert torch.allclose(psnr(pictures, originals), torch.tensor([20.0, 40.0]), atol=1e-3)


def test_same_seed_same_training():
    def trained():
        torch.manual_seed(3)
        model = small_model().train()
        for _ in range(3): model.loss(torch.rand(4, 3, 16, 16) * 2 - 1)
        return buffers(model)
    first, second = trained(), trained()
    assert all(first[name].equal(second[name]) for name in first)


def _batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(5, 4, 4, 4, generator=generator) * 3 for _ in range(20)]


def _train_in_process(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(11 + rank)      # only the first process' draws count
    quantizer = VectorQuantizerEMA(16, 4, decay=0.8, revive_after=0.3).train()
    for batch in _batches(): quantizer(batch[:3] if rank == 0 else batch[3:])      # unequal shares
    torch.save(quantizer.state_dict(), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_what_one_would(tmp_path):
    torch.multiprocessing.spawn(_train_in_process, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(11)
    alone = VectorQuantizerEMA(16, 4, decay=0.8, revive_after=0.3).train()
    for batch in _batches(): alone(batch)
    for name, value in alone.state_dict().items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5)
