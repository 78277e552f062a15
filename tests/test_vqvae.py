"The VQ-VAE: exact codes, a codebook that follows its vectors and stays alive, and no harm from bad input."
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgen.config import VQGenError, VQVAEConfig
from vqgen.vqvae.model import VQVAE, psnr
from vqgen.vqvae.quantizer import VectorQuantizerEMA, draw_rows, kmeans, nearest_codes

SMALL = dict(hidden_channels=16, residual_channels=8, residual_layers=1, codebook_size=32, code_dim=8)


@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(0)


def small_model(**changes): return VQVAE(VQVAEConfig(**{**SMALL, **changes}))


def buffers(module): return {name: value.clone() for name, value in module.named_buffers()}


def same(before, module): return all(value.equal(before[name]) for name, value in module.named_buffers())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 2100), size=st.integers(1, 70), dim=st.integers(1, 20), shift=st.sampled_from([0.0, 50.0]),
       seed=st.integers(0, 2**31))
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


def test_kmeans_centres_are_the_means_of_their_rows():
    rows = torch.randn(600, 4)
    centres, counts = kmeans(rows, 6, rounds=200)
    codes = nearest_codes(rows, centres)
    assert codes.bincount(minlength=6).eq(counts).all() and counts.min() > 0
    torch.testing.assert_close(centres, torch.stack([rows[codes == code].mean(0) for code in range(6)]), rtol=0, atol=1e-4)


def test_kmeans_with_fewer_rows_than_codes():
    centres, _ = kmeans(torch.randn(5, 3), 16)
    assert centres.shape == (16, 3) and centres.isfinite().all()


def test_draws_depend_only_on_the_random_state():
    rows, weights = torch.randn(100, 3), torch.rand(100)
    torch.manual_seed(7)
    first = draw_rows(rows, weights, 10)
    torch.manual_seed(7)
    assert draw_rows(rows, weights, 10).equal(first)


def test_a_used_code_moves_to_the_mean_of_its_inputs():
    quantizer = VectorQuantizerEMA(2, 3, decay=0.5, revive_after=0)
    quantizer._set(slice(None), torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]]), torch.ones(2))
    quantizer.initialised.fill_(True)
    rows = torch.randn(40, 3) + torch.tensor([[-5.0, 1, 2]] * 20 + [[5.0, -1, 0]] * 20)
    for _ in range(60): quantizer(rows.T.reshape(1, 3, 5, 8))
    torch.testing.assert_close(quantizer.codebook, torch.stack([rows[:20].mean(0), rows[20:].mean(0)]), rtol=0, atol=1e-4)


def test_revived_codes_are_reset_and_stay_alive():
    quantizer = VectorQuantizerEMA(16, 4, decay=0.9)
    quantizer._set(slice(None), torch.full((16, 4), 1000.0) + torch.rand(16, 4), torch.ones(16))   # all far off
    quantizer.initialised.fill_(True)
    for step in range(120):
        codes = quantizer(torch.randn(2, 4, 8, 8)).codes
        if step == 60:
            assert quantizer.codebook.abs().max() < 10          # nothing pulls a revived code back to where it died
            torch.testing.assert_close(quantizer.ema_sum / quantizer.ema_count[:, None], quantizer.codebook, rtol=0, atol=1e-3)
            revived = quantizer.codebook.clone()
    assert (quantizer.ema_count > 0.03 * quantizer.ema_count.mean()).all()
    assert (quantizer.codebook - revived).norm(dim=1).max() < 2.5       # they drift, but none had to be moved anew
    assert len(quantizer.eval().encode(torch.randn(16, 4, 8, 8)).unique()) == 16


def test_revival_moves_dead_codes_onto_current_vectors():
    quantizer = VectorQuantizerEMA(8, 2, decay=0.5)
    quantizer._set(slice(None), torch.full((8, 2), 50.0), torch.zeros(8))
    quantizer.initialised.fill_(True)
    z = torch.randn(1, 2, 4, 4)
    quantizer(z)
    rows = z.movedim(1, -1).reshape(-1, 2)
    torch.testing.assert_close(quantizer.codebook[0], rows.mean(0))                     # the first was nearest to all
    assert torch.cdist(quantizer.codebook[1:], rows).min(1).values.max() < 1e-5         # the others sit on vectors of the batch


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
    for name, parameter in model.named_parameters(): assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert set(metrics) == {"reconstruction", "commitment", "perplexity", "psnr"}
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


def test_saved_and_loaded_model_gives_the_same_codes():
    model = small_model().train()
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    for _ in range(3): model.loss(images)
    model.eval()
    other = small_model().eval()
    other.load_state_dict(model.state_dict())
    assert other.encode(images).equal(model.encode(images))
    assert other.decode(model.encode(images)).equal(model.decode(model.encode(images)))
    assert {"quantizer.codebook", "quantizer.ema_count", "quantizer.ema_sum", "quantizer.initialised"} <= set(model.state_dict())
    before = buffers(other)
    other.train().loss(images)
    assert (other.quantizer.codebook - before["quantizer.codebook"]).abs().max() < 5      # no second k-means start
    assert other.quantizer.initialised


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_stay_finite_and_exact(dtype):
    quantizer = VectorQuantizerEMA(16, 4).train()
    z = (torch.randn(2, 4, 8, 8) * 200).to(dtype).requires_grad_()
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
    assert model.num_codes_per_side(32) == 32 // f


@pytest.mark.parametrize("shape, words", [((1, 3, 30, 32), "30.*4"), ((1, 3, 32, 33), "33.*4"),
                                          ((1, 1, 32, 32), "RGB"), ((3, 32, 32), "RGB")])
def test_wrong_shapes_are_refused_in_a_sentence(shape, words):
    with pytest.raises(VQGenError, match=words): small_model().encode(torch.zeros(shape))


def test_num_codes_per_side_names_both_numbers():
    with pytest.raises(VQGenError, match="50.*4"): small_model().num_codes_per_side(50)


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
