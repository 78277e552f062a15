"A stream goes on at the right example, leaves out what is held out or broken, and keeps nothing."
import itertools
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_data import png, write_folder
from tiny import CONFIG, SHORT, Stopping, changed, refusal, weights

from vqgen.config import DataConfig, TrainConfig
from vqgen.data import streams
from vqgen.data.datasets import build_data, cache_dir
from vqgen.data.streams import CaptionedStream, load_stream
from vqgen.errors import VQGenError
from vqgen.experiment import load_splits, train_model
from vqgen.priors.codes import encode_stream
from vqgen.training.batches import batches
from vqgen.training.checkpoints import read_description
from vqgen.training.loop import train
from vqgen.vqvae.model import VQVAE


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    "At the end of an epoch `datasets` waits five seconds for its threads."
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def shards(tmp_path):
    "Three parquet files, and the config that reads them as a stream."
    for k in range(3):
        numbers = range(20 * k, 20 * k + 20)
        pictures = [png((4 * i, 0, 0)) for i in numbers]
        if not k: pictures[7] = pictures[7][:40]
        pq.write_table(pa.table({"image": pictures, "text": [f"shade {i}" for i in numbers]}),
                       tmp_path / f"{k}.parquet")
    return DataConfig(source=str(tmp_path / "*.parquet"), image_size=16, streaming=True)


def reds(stream, count, start=0, **options):
    "The shades in `count` batches of 8."
    taken = itertools.islice(batches(stream, TrainConfig(batch_size=8, **options), 1, start), count)
    images = torch.cat([batch["images"] for _, batch in taken])
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_every_training_picture_comes_once_an_epoch_in_an_order_of_shards(shards):
    stream, held = load_stream(shards)
    count = 60 - 1 - len(held)
    seen = reds(stream, 40)
    for epoch in range(3): assert len(set(seen[epoch * count:(epoch + 1) * count])) == count
    assert 4 * 7 not in seen and not set(seen) & {4 * int(words.split()[1]) for words in held.captions}
    assert seen[:count] != seen[count:2 * count] and seen == reds(load_stream(shards)[0], 40)


@pytest.mark.parametrize("done", [1, 6, 7, 13])
def test_a_stream_goes_on_at_the_right_example(shards, done):
    whole, begun = reds(load_stream(shards)[0], 16), load_stream(shards)[0]
    first = reds(begun, done)
    state, later = begun.state_dict(), load_stream(shards)[0]
    later.load_state_dict(state)
    assert first + reds(later, 16 - done, start=done) == whole


def fit(shards, folder, wrap=lambda stream: stream, **changes):
    torch.manual_seed(0)
    stream, held = load_stream(changed(shards, flip=True, crop=0.2))
    model = VQVAE(CONFIG.vqvae.model)
    return train(model, wrap(stream), changed(SHORT, **changes), folder, validation=held)


class Interrupted:
    "A stream that is stopped by Ctrl-C while example `at` is read."
    def __init__(self, stream, at): self.stream, self.at = stream, at

    def __len__(self): return len(self.stream)

    def __getattr__(self, name): return getattr(self.stream, name)

    def examples(self, seed):
        stop = Stopping([0] * (self.at + 1), 1)
        for i, row in enumerate(self.stream.examples(seed)):
            if i == self.at: stop.__getitems__([0])
            yield row


@pytest.mark.parametrize("installed, is_said", [
    ("4.0.0", True), ("5.0.1", True), ("5.1.0", False), ("10.0", False)])
def test_it_is_said_where_going_on_is_not_exact(shards, monkeypatch, capsys, installed, is_said):
    monkeypatch.setattr(streams, "version", lambda package: installed)
    stream = load_stream(shards)[0]
    next(stream.examples(0))
    load_stream(shards)[0].load_state_dict(stream.state_dict())
    assert ("before 5.1" in capsys.readouterr().out) == is_said


def test_a_training_from_a_stream_goes_on_to_the_bit(shards, tmp_path):
    history = fit(shards, tmp_path / "whole")
    with pytest.raises(VQGenError, match="stopped at step 5"):
        fit(shards, tmp_path / "twice", lambda stream: Interrupted(stream, 36))
    again = fit(shards, tmp_path / "twice")
    assert weights(tmp_path / "whole") == weights(tmp_path / "twice")
    assert again[-1]["validation/loss"] == history[-1]["validation/loss"]


def test_shares_are_those_of_one_batch(shards):
    whole = reds(load_stream(shards)[0], 4)
    assert reds(load_stream(shards)[0], 8, gradient_accumulation_steps=2) == whole


def test_the_experiment_trains_from_a_stream_and_builds_nothing(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    config = CONFIG.model_copy(update={"data": shards})
    train_model("vqvae", config, tmp_path / "run")
    for name in ("lstm", "cftn-v2"): train_model(name, config, tmp_path / "run")
    assert not (cache_dir() / "pictures").exists() or not list((cache_dir() / "pictures").glob("read-*"))
    assert len(coded_files()) == 1
    known = {read_description(tmp_path / "run" / name)["data"] for name in ("vqvae", "lstm", "cftn-v2")}
    assert len(known) == 1
    assert "data.streaming" in refusal(load_splits, config)


def coded_files(): return sorted((cache_dir() / "codes").glob("*-stream-*.arrow"))


@pytest.fixture
def vqvae(shards):
    torch.manual_seed(0)
    vqvae, (_, held) = VQVAE(CONFIG.vqvae.model), load_stream(shards)
    vqvae.loss(held.batch(range(len(held))))
    return vqvae.eval()


def test_the_codes_of_a_stream_are_those_of_its_pictures(shards, vqvae, monkeypatch, tmp_path):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    stream, held = load_stream(shards)
    coded = encode_stream(vqvae, stream, batch_size=7)
    shades = [int(words.split()[1]) for words in coded.captions]
    assert len(coded) == 60 - 1 - len(held) and shades == sorted(set(range(60)) - {7} - {
        int(words.split()[1]) for words in held.captions})
    pictures = torch.zeros(len(coded), 3, 16, 16)
    pictures[:, 0] = torch.tensor(shades)[:, None, None] * 4
    assert np.array_equal(coded.codes, vqvae.encode(pictures / 127.5 - 1).numpy())
    with monkeypatch.context() as patch:
        patch.setattr(CaptionedStream, "whole_rows", lambda *_: pytest.fail("read again"))
        again = encode_stream(vqvae, stream)
    assert np.array_equal(again.codes, coded.codes) and again.caption_lists == coded.caption_lists


def test_an_interrupted_reading_begins_anew_and_damage_is_said(shards, vqvae, monkeypatch, tmp_path):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(CaptionedStream, "whole_rows", interrupted(CaptionedStream.whole_rows, 40))
        stream = load_stream(shards)[0]
        with pytest.raises(KeyboardInterrupt): encode_stream(vqvae, stream, 16)
    assert not coded_files()
    coded = encode_stream(vqvae, load_stream(shards)[0])
    for damage in (b"", coded_files()[0].read_bytes()[:-200], b"x" * 999):
        coded_files()[0].write_bytes(damage)
        assert "delete" in refusal(encode_stream, vqvae, load_stream(shards)[0])
    coded_files()[0].unlink()
    assert np.array_equal(encode_stream(vqvae, load_stream(shards)[0]).codes, coded.codes)


def interrupted(read, number):
    "The method `read`, interrupted when it would give row `number` of the training side."
    def method(self, table, held=False):
        for i, row in enumerate(read(self, table, held)):
            if i == number and not held: raise KeyboardInterrupt
            yield row
    return method


def test_a_stream_that_breaks_off_is_one_sentence(shards):
    stream = load_stream(shards)[0]
    (Path(shards.source).parent / "2.parquet").unlink()
    assert "parquet breaks off" in refusal(reds, stream, 10)


def test_what_cannot_be_streamed_is_said(shards, tmp_path):
    assert "data.streaming" in refusal(load_stream, DataConfig(streaming=True))
    assert "data.streaming" in refusal(build_data, shards)
    assert "data.views" in refusal(load_stream, changed(shards, views=2, flip=True))
    assert "num_workers" in refusal(reds, load_stream(shards)[0], 1, num_workers=1)
    broken = changed(shards, max_broken=0)
    assert "0.parquet row 7" in refusal(lambda: reds(load_stream(broken)[0], 8))


def test_a_folder_is_streamed_too(tmp_path):
    config = changed(write_folder(tmp_path / "own", 40), streaming=True)
    stream, held = load_stream(config)
    assert len(held) and len(set(reds(stream, 5))) >= 20
