"Arrays on disk: whatever happens to the process or to the file, the array that is read is the right one."
import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIG, one_sentence, refusal

from vqgen.config import BrainConfig, PriorShape, StageConfig, TextConfig, TrainConfig
from vqgen.data.cache import cached_array
from vqgen.data.datasets import load_data
from vqgen.errors import VQGenError
from vqgen.priors.brain import BiHemisphericBrain
from vqgen.priors.codes import CodedCaptions, check_codes, encode_dataset
from vqgen.priors.curriculum import train_stage
from vqgen.priors.text import text_shape, train_tokenizer
from vqgen.training.batches import batches
from vqgen.vqvae.model import VQVAE

SHAPE, SIZE = (50, 3), 8                                   # seven blocks, the last of two rows
TRUTH = (np.arange(50)[:, None] * [1, 10, 100]).astype(np.int32)


class Rows:
    "A `make` that remembers which blocks it was asked for, and may be interrupted before block `stop`."
    def __init__(self, stop=None): self.stop, self.made = stop, []

    def __call__(self, rows):
        if rows[0] // SIZE == self.stop: raise KeyboardInterrupt
        self.made.append(rows[0] // SIZE)
        return TRUTH[rows[0]:rows[-1] + 1]


def build(path, make): return cached_array(path, SHAPE, np.int32, make, SIZE)


def interrupted(path, stop):
    make = Rows(stop)
    with pytest.raises(KeyboardInterrupt): build(path, make)
    assert make.made == list(range(stop)) and not path.exists()
    return path.with_name(path.name + ".partial")


# --- interruption ---

@pytest.mark.parametrize("stop", range(7))
def test_interrupted_work_continues(tmp_path, stop):
    interrupted(tmp_path / "a.npy", stop)
    make = Rows()
    array = build(tmp_path / "a.npy", make)
    assert make.made == list(range(stop, 7)) and np.array_equal(array, TRUTH)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(tmp_path / "a.npy"), TRUTH), "any NumPy can read it"
    again = Rows()
    build(tmp_path / "a.npy", again)
    assert not again.made and not array.flags.writeable


KILL = """
import os, signal, sys
from pathlib import Path
import numpy as np
import vqgen.data.cache as cache

truth, folder = (np.arange(50)[:, None] * [1, 10, 100]).astype(np.int32), Path(sys.argv[1])
def make(rows): return truth[rows[0]:rows[-1] + 1]
def build(): return cache.cached_array(folder / "a.npy", (50, 3), np.int32, make, 8)

def child(line):
    "Build it in a process that is killed before it executes line number `line` of the module; was it?"
    pid, count = os.fork(), 0
    if pid: return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != cache.__file__: return None
        if event == "line":
            count += 1
            if count == line: os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    build()
    os._exit(0)

build()
whole, line = (folder / "a.npy").read_bytes(), 0
(folder / "a.npy").unlink()
while True:
    line += 1
    killed = child(line)
    assert np.array_equal(build(), truth) and (folder / "a.npy").read_bytes() == whole, line
    assert [path.name for path in folder.iterdir()] == ["a.npy"], line
    (folder / "a.npy").unlink()
    if not killed: break
repeated = 0
for line in range(1, 10**6, 7):   # killed again and again, each time a little later
    repeated += 1
    if not child(line): break
assert (folder / "a.npy").read_bytes() == whole
print(line, repeated)
"""


def run_python(code, folder):
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_sigkill_at_every_line(tmp_path):
    "Wherever the process is killed, the next one ends with the very same bytes."
    result = run_python(KILL, tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 50, "the trace saw too little"


@pytest.mark.parametrize("damage", ["empty", "short", "shorter", "long", "zeros", "one bit", "header",
                                    "checksum", "text", "another array"])
def test_damaged_partial_is_never_believed(tmp_path, damage):
    partial = interrupted(tmp_path / "a.npy", 5)
    content = bytearray(partial.read_bytes())
    if damage == "empty": content = b""
    if damage == "short": content = content[:-20]
    if damage == "shorter": content = content[:300]
    if damage == "long": content += b"more"
    if damage == "zeros": content[200:400] = bytes(200)
    if damage == "one bit": content[250] ^= 1
    if damage == "header": content[20] ^= 1
    if damage == "checksum": content[-16 * 7 + 3] ^= 1
    if damage == "text": content = b"hello " * 100
    if damage == "another array":
        cached_array(tmp_path / "b.npy", SHAPE, np.int32, lambda rows: TRUTH[list(rows)] + 1, SIZE)
        content = (tmp_path / "b.npy").read_bytes()
    partial.write_bytes(content)
    make = Rows()
    assert np.array_equal(build(tmp_path / "a.npy", make), TRUTH)
    expected = {"long": 2, "zeros": 5, "one bit": 3, "checksum": 3}.get(damage, 7)
    assert len(make.made) <= expected and {5, 6} <= set(make.made)


def test_partial_of_other_blocks_is_not_used(tmp_path):
    "The same array in blocks of another size, or of another type: a new beginning."
    interrupted(tmp_path / "a.npy", 5)
    def rows_of(rows): return TRUTH[list(rows)]
    assert np.array_equal(cached_array(tmp_path / "a.npy", SHAPE, np.int32, rows_of, 5), TRUTH)
    interrupted(tmp_path / "b.npy", 5)
    assert np.array_equal(cached_array(tmp_path / "b.npy", SHAPE, np.int64, rows_of, SIZE), TRUTH)


@pytest.mark.parametrize("damage", ["empty", "short", "long", "one bit", "checksum", "text", "older version"])
def test_damaged_file_is_made_anew(tmp_path, capsys, damage):
    path = tmp_path / "a.npy"
    build(path, Rows())
    assert not capsys.readouterr().out
    content = bytearray(path.read_bytes())
    if damage == "one bit": content[300] ^= 1
    if damage == "checksum": content[-1] ^= 1
    others = {"empty": b"", "short": content[:400], "long": content + b"more", "text": b"hello"}
    path.write_bytes(others.get(damage, content))
    if damage == "older version": np.save(path, TRUTH)
    make = Rows()
    assert np.array_equal(build(path, make), TRUTH) and len(make.made) == 7
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and str(path) in said and "anew" in said
    build(path, again := Rows())
    assert not again.made and not capsys.readouterr().out


def test_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path):
    interrupted(tmp_path / "a.npy", 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(VQGenError, match="free some space") as caught: build(tmp_path / "b.npy", Rows())
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_sentence(caught.value) and not (tmp_path / "b.npy").exists()
    assert np.array_equal(build(tmp_path / "b.npy", Rows()), TRUTH)


# --- several processes ---

TOGETHER = """
import os, sys
from pathlib import Path
import numpy as np
from vqgen.data.cache import cached_array

truth, folder = (np.arange(2000)[:, None] * [1, 10, 100]).astype(np.int32), Path(sys.argv[1])
def make(rows):
    with open(folder / "log", "a") as file: file.write(f"{rows[0]}\\n")
    return truth[rows[0]:rows[-1] + 1]
for round in range(20):
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            array = cached_array(folder / "cache" / f"{round}.npy", truth.shape, np.int32, make, 100)
            os._exit(0 if np.array_equal(array, truth) else 1)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert len((folder / "log").read_text().split()) == 20 * 20, "a block was made twice"
assert {path.name for path in (folder / "cache").iterdir()} == {f"{round}.npy" for round in range(20)}
"""


def test_processes_do_not_spoil_each_other(tmp_path):
    result = run_python(TOGETHER, tmp_path)
    assert result.returncode == 0, result.stderr


# --- the codes of a data set ---

class Noted:
    "A data set that notes from where it is read, and runs `act` before the batch that begins at `at`."
    def __init__(self, data, at=None, act=None):
        self.data, self.read = data, []
        self.at, self.act = at, act

    def __len__(self): return len(self.data)

    def __getattr__(self, name): return getattr(self.data, name)

    def batch(self, indices):
        if indices[0] == self.at: self.act()
        self.read.append(indices[0])
        return self.data.batch(indices)


@pytest.fixture(scope="module")
def data(): return load_data(CONFIG.data, "train")


def new_vqvae(data, seed=0, **changes):
    torch.manual_seed(seed)
    vqvae = VQVAE(CONFIG.vqvae.model.model_copy(update=changes))
    vqvae.train()(data.batch(range(32)))
    return vqvae.eval()


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


ENCODE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_codes import CONFIG, Noted, encode_dataset, load_data, new_vqvae
data = load_data(CONFIG.data, "train")
def wait():
    print("encoding", flush=True)
    sys.stdin.readline()
def die(): os.kill(os.getpid(), signal.SIGKILL)
noted = Noted(data, 64, {act})
codes = encode_dataset(new_vqvae(data), noted, batch_size=16)
print(len(noted.read))
"""


def encoder_process(act):
    code = ENCODE.format(tests=os.path.dirname(os.path.abspath(__file__)), act=act)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)


def test_killed_encoding_continues(data, tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "one"))
    load_data(CONFIG.data, "train")
    process = encoder_process("die")
    _, err = process.communicate(timeout=120)
    assert process.returncode == -9, err
    vqvae, rest = new_vqvae(data), Noted(data)
    codes = encode_dataset(vqvae, rest, batch_size=16)
    assert rest.read == list(range(64, len(data), 16))
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "two"))
    whole = encode_dataset(vqvae, data, batch_size=16)
    assert Path(codes.filename).read_bytes() == Path(whole.filename).read_bytes()
    assert codes.filename != whole.filename
    assert np.array_equal(whole, vqvae.encode(data.batch(range(len(data)))))


def test_second_process_waits_for_the_first(data, fresh_cache):
    load_data(CONFIG.data, "train")
    first = encoder_process("wait")
    assert first.stdout.readline() == "encoding\n", first.communicate()[1]
    second = encoder_process("wait")
    out, err = first.communicate("go on\n", timeout=120)
    assert out.split() == [str(-(-len(data) // 16))], err
    out, err = second.communicate("go on\n", timeout=120)
    assert out.split() == ["0"], err


def test_stale_codes_are_not_used(data, fresh_cache):
    "Those of other weights, finished or not, even under the right name."
    def stop(): raise KeyboardInterrupt
    first, second = new_vqvae(data, 0), new_vqvae(data, 1)
    with pytest.raises(KeyboardInterrupt): encode_dataset(first, Noted(data, 64, stop), batch_size=16)
    stale = next((fresh_cache / "codes").glob("*.partial"))
    codes = encode_dataset(second, data, batch_size=16)
    assert np.array_equal(codes, second.encode(data.batch(range(len(data)))))
    os.replace(stale, f"{codes.filename}.partial")
    os.unlink(codes.filename)
    assert np.array_equal(encode_dataset(second, data, batch_size=16), codes)


@pytest.mark.parametrize("size, kind", [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_smallest_type(data, fresh_cache, size, kind):
    vqvae = new_vqvae(data, codebook_size=size)
    codes = encode_dataset(vqvae, data)
    assert codes.dtype == kind and np.array_equal(codes, vqvae.encode(data.batch(range(len(data)))))


# --- pairs of a teacher ---

@pytest.fixture(scope="module")
def small():
    "A brain and the codes it could be trained on."
    captions = ["a red hat", "a blue hat", "green hair"]
    tokenizer = train_tokenizer(captions, TextConfig())
    torch.manual_seed(0)
    shape = PriorShape(codebook_size=16, grid_size=4, **text_shape(tokenizer))
    brain = BiHemisphericBrain(BrainConfig(width=16, heads=2, layers=2), shape).eval()
    return brain, CodedCaptions(np.random.default_rng(0).integers(0, 16, (3, 4, 4)), captions, tokenizer)


# --- what is refused ---

@pytest.mark.parametrize("low, high", [(0, 16), (-1, 3), (0, 60000)])
def test_codes_out_of_range(small, low, high):
    shape = small[0].shape
    codes = np.zeros((3, 4, 4), np.int64)
    check_codes(codes, shape)
    codes[1, 2, 3], codes[2, 0, 0] = low, high
    said = refusal(check_codes, codes, shape)
    assert str(low) in said and str(high) in said and "15" in said


def test_codes_of_another_grid(small):
    assert "8 x 8" in refusal(check_codes, np.zeros((3, 8, 8), np.int64), small[0].shape)


def test_training_does_not_begin_with_wrong_codes(small, tmp_path):
    (brain, data), stage = small, StageConfig(steps=2)
    wrong = CodedCaptions(data.codes + 1, data.captions, data.tokenizer)
    for pair in [(wrong, None), (data, wrong)]:
        assert "16" in refusal(train_stage, brain, "stage1", stage, *pair, tmp_path / "run")
    tokenizer = train_tokenizer(["other words " + caption for caption in data.captions], TextConfig())
    other = CodedCaptions(data.codes, data.captions, tokenizer)
    assert "vocab_size" in refusal(train_stage, brain, "stage1", stage, other, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_caption_for_each_picture(small):
    assert "3" in refusal(CodedCaptions, small[1].codes, ["one", "two"], small[1].tokenizer)


def test_one_of_several_captions_is_drawn_by_seed_and_step():
    data = load_data(CONFIG.data)
    lists = [[words, f"second {i}", f"third {i}"] for i, words in enumerate(data.captions)]
    tokenizer = train_tokenizer([*data.captions, *["second third 0123456789"] * 3], TextConfig())
    codes = np.arange(len(data))[:, None, None] * np.ones((1, 4, 4), np.int64)
    pairs = CodedCaptions(codes, lists, tokenizer)
    assert pairs.captions == data.captions and len(pairs) == len(data) and len(pairs.rows) == 3 * len(data)

    def read(start, count):
        stream = batches(pairs, TrainConfig(batch_size=8), seed=3, start=start)
        return [batch for _, batch in itertools.islice(stream, count)]
    first, again = read(0, 60), read(40, 20)
    assert all(torch.equal(a["text"].input_ids, b["text"].input_ids) for a, b in zip(first[40:], again))
    seen = {}
    for batch in first:
        words = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["text"].input_ids]
        for code, caption in zip(batch["codes"][:, 0, 0].tolist(), words):
            seen.setdefault(code, set()).add(caption)
    for number, found in seen.items(): assert found <= {" ".join(words.split()) for words in lists[number]}
    assert max(map(len, seen.values())) == 3


def test_views_are_encoded_once_and_drawn():
    data = load_data(CONFIG.data.model_copy(update={"flip": True, "crop": 0.2, "views": 3}))
    torch.manual_seed(0)
    vqvae = VQVAE(CONFIG.vqvae.model)
    vqvae.loss(data.batch(range(32)))
    codes, plain = encode_dataset(vqvae.eval(), data, 50, views=3), encode_dataset(vqvae, data)
    count = len(data)
    assert len(codes) == 3 * count and np.array_equal(codes[:count], plain)
    expected = vqvae.encode(data.view([7], 2)).numpy()
    assert np.array_equal(codes[2 * count + 7:2 * count + 8], expected)
    pairs = CodedCaptions(codes, data.captions, train_tokenizer(data.captions, TextConfig()), views=3)
    drawn = {tuple(pairs[7][0].flatten().tolist()) for _ in range(60)}
    assert drawn == {tuple(codes[number * count + 7].flatten().tolist()) for number in range(3)}
    assert len(pairs) == count
    assert "give one for each" in refusal(CodedCaptions, codes, data.captions, pairs.tokenizer)
