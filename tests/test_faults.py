"A damaged file, a full disk, a folder that is taken or read-only: no training is lost, one sentence each."
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import (
    CONFIG,
    Stopping,
    changed,
    contents,
    load_step,
    one_sentence,
    refusal,
    scraps,
    train_plain,
    weights,
)

from vqgen.config import VQVAEConfig
from vqgen.errors import VQGenError
from vqgen.experiment import train_vqvae
from vqgen.files import write_atomically
from vqgen.priors.brain import BiHemisphericBrain
from vqgen.training.checkpoints import (
    CHECKPOINT_FILES,
    checkpoints,
    last_step,
    load_model,
    new_checkpoint,
    save_model,
    save_state,
)
from vqgen.training.devices import explain_crashes
from vqgen.vqvae.model import VQVAE

HERE = Path(__file__).parent


# --- damaged checkpoints ---

@pytest.fixture(scope="module")
def whole(own_caches, tmp_path_factory):
    "A training in one go."
    folder = tmp_path_factory.mktemp("whole")
    train_plain(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(own_caches, tmp_path_factory):
    "The same, stopped in step 6: it has checkpoints of the steps 4 and 6."
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(VQGenError): train_plain(folder, lambda data: Stopping(data, 6))
    assert [path.name for path in checkpoints(folder / "state/train")] == ["step-00000004", "step-00000006"]
    return folder


@pytest.fixture
def parts(stopped, tmp_path): return Path(shutil.copytree(stopped, tmp_path / "parts"))


def truncate(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def fill_with_zeros(path): path.write_bytes(bytes(path.stat().st_size))   # as after a power cut


def empty(path): path.write_bytes(b"")


DAMAGE = {"truncated": truncate, "flipped byte": flip_byte, "zeros": fill_with_zeros, "empty": empty,
          "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, "sha256.json"])
def test_damaged_checkpoint_gives_way_to_the_one_before(whole, parts, capsys, name, damage):
    "One line says so; all ends in the weights of a training in one go, and the damaged one does not stay."
    before, newest = checkpoints(parts / "state/train")
    DAMAGE[damage](newest / name)
    train_plain(parts)
    [said] = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert one_sentence(said) and f"{newest} is damaged ({name}" in said and said.endswith(f"using {before}")
    assert weights(parts) == weights(whole)
    assert [path.name for path in checkpoints(parts / "state/train")] == ["step-00000008", "step-00000009"]


def test_a_copy_of_a_checkpoint_is_none_and_stays(whole, parts):
    "As a careful user makes one, by hand."
    state = parts / "state/train"
    for name in ("step-00000004.bak", "step-00000006 (copy)"):
        shutil.copytree(state / name[:13], state / name)
    assert last_step(state) == 6
    train_plain(parts)
    assert (state / "step-00000004.bak").is_dir() and (state / "step-00000006 (copy)").is_dir()
    assert weights(parts) == weights(whole)


def test_checkpoint_written_again_replaces_the_damaged_one(whole, parts):
    "The training comes back to the step whose checkpoint was damaged, and saves there."
    newest = checkpoints(parts / "state/train")[-1]
    truncate(newest / "training.pt")
    refusal(train_plain, parts, lambda data: Stopping(data, 2))   # the second step after step 4
    assert load_step(parts) == 6 and not scraps(parts)
    train_plain(parts)
    assert weights(parts) == weights(whole)


def test_all_checkpoints_damaged(parts):
    for path in checkpoints(parts / "state/train"): (path / "training.pt").unlink()
    before = contents(parts)
    said = refusal(train_plain, parts)
    assert "step-00000006 is damaged (training.pt" in said and "start over" in said
    assert contents(parts) == before


def test_changed_settings_are_refused_also_by_the_checkpoint_before(parts):
    truncate(checkpoints(parts / "state/train")[-1] / "training.pt")
    said = refusal(train_plain, parts, learning_rate=0.1)
    assert "learning_rate 0.003 -> 0.1" in said and len(checkpoints(parts / "state/train")) == 2


def forge(folder, state):
    "A checkpoint in which every checksum is right."
    with new_checkpoint(folder / "state/train/step-00000004") as new:
        save_model(VQVAE(CONFIG.vqvae.model), new)
        save_state(new / "training.pt", state)


@pytest.mark.parametrize("state", [{"anything": 1}, [1, 2], "text"], ids=str)
def test_checkpoint_of_something_else(tmp_path, state):
    forge(tmp_path, state)
    assert "start over" in refusal(train_plain, tmp_path)


class Bomb:
    "Runs code when a careless reader unpickles it."
    def __reduce__(self): return os.mkdir, (Bomb.path,)


def test_checkpoint_cannot_run_code(tmp_path):
    Bomb.path = str(tmp_path / "exploded")
    forge(tmp_path / "run", Bomb())
    refusal(train_plain, tmp_path / "run")
    assert not (tmp_path / "exploded").exists()


# --- damaged models ---

@pytest.fixture(scope="module")
def trained(own_caches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_plain(folder, steps=2)
    return folder


@pytest.fixture
def copy(trained, tmp_path): return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.parametrize("damage", ["half", "empty", "text", "missing", "other weights", "other shapes"])
def test_damaged_weights_are_one_sentence(copy, damage):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    if damage == "missing": path.unlink()
    elif damage == "other weights": save_file({"weight": torch.zeros(3)}, path)
    elif damage == "other shapes": save_file(VQVAE(VQVAEConfig(hidden_channels=16)).state_dict(), path)
    else: path.write_bytes({"half": content[:len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    assert str(copy) in refusal(load_model, copy, VQVAE)


@pytest.mark.parametrize("text", [
    '{"model": "VQV', "", "[1, 2]", '{"model": "VQVAE"}', '{"model": "VQVAE", "config": 5}',
    '{"model": "VQVAE", "config": {"downsample": 3}}', '{"model": "VQVAE", "config": {"depth": 3}}',
    b"\xff\xfe\x00"])
def test_damaged_description_is_one_sentence(copy, text):
    (copy / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(copy) in refusal(load_model, copy, VQVAE)


def test_the_model_of_another_class_is_refused(trained):
    said = refusal(load_model, trained, BiHemisphericBrain)
    assert "VQVAE" in said and "BiHemisphericBrain" in said


def test_no_model_at_all(tmp_path):
    assert "train it first" in refusal(load_model, tmp_path / "nothing", VQVAE)


def test_saved_and_loaded_is_the_same(trained, tmp_path):
    model = load_model(trained, VQVAE)
    save_model(model, tmp_path)
    assert weights(tmp_path) == weights(trained) and not model.training
    assert load_model(tmp_path, VQVAE).config == model.config


# --- folders that cannot be written ---

def test_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", "utf-8")

    def run_out(temporary):
        temporary.write_text("half of the n", "utf-8")
        raise OSError(28, "No space left on device")
    assert "No space left" in refusal(write_atomically, path, run_out)
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made(tmp_path):
    "A file stands where the folder should be; root meets this, too."
    (tmp_path / "file").write_text("in the way", "utf-8")
    for folder in ("file", "file/deeper"):
        assert str(tmp_path / "file") in refusal(train_plain, tmp_path / folder)
        assert str(tmp_path / "file") in refusal(train_vqvae, CONFIG, tmp_path / folder)
    assert (tmp_path / "file").read_text("utf-8") == "in the way"


def python(code, *arguments, before=()):
    "Run `code` in a process of its own, beside these tests."
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)


READ_ONLY = """
import sys, tiny as t
from vqgen.errors import VQGenError
try: t.train_plain(sys.argv[1])
except VQGenError as error: print(error)
"""


ROOT = os.geteuid() == 0
HUMBLE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if ROOT else []


@pytest.mark.skipif(ROOT and not shutil.which("setpriv"), reason="root may write anywhere, without setpriv")
def test_folder_that_may_not_be_written(tmp_path):
    "A process that may not write everywhere, as root may, meets a read-only folder: one sentence, no change."
    refusal(train_plain, tmp_path / "run", lambda data: Stopping(data, 3))
    before = contents(tmp_path)
    folders = [tmp_path / "run", *(path for path in (tmp_path / "run").rglob("*") if path.is_dir())]
    for folder in folders: folder.chmod(0o500)
    try: result = python(READ_ONLY, tmp_path / "run", before=HUMBLE)
    finally:
        for folder in folders: folder.chmod(0o700)
    said = result.stdout.strip()
    assert one_sentence(said) and "cannot write" in said and "ermission denied" in said, result
    assert contents(tmp_path) == before


def test_worker_that_dies_ends_the_training_in_a_sentence(tmp_path):
    "Killed while it reads, as by the kernel without memory; the same command goes on, also without workers."
    def killing(data): return Stopping(data, 6, signal.SIGKILL)
    said = refusal(train_plain, tmp_path / "parts", killing, num_workers=1, save_every=1)
    assert "reads data died" in said and "num_workers" in said and load_step(tmp_path / "parts") > 0
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


class Unplugged(Stopping):
    "Data whose connection breaks in the training process itself."
    def __getitems__(self, indices): raise ConnectionResetError("Connection reset by peer")


def test_connection_that_breaks_is_blamed_on_a_reading_process_only_where_there_is_one(tmp_path):
    "A killed worker's pipe breaks before its death is known; without workers it is the data's connection."
    with pytest.raises(ConnectionResetError): train_plain(tmp_path, lambda data: Unplugged(data, 6))
    with pytest.raises(VQGenError, match="reads data died"), explain_crashes(lambda: None, num_workers=1):
        raise ConnectionResetError("Connection reset by peer")


FULL = """
import resource, sys, tiny as t
from vqgen.errors import VQGenError
from vqgen.training.checkpoints import load_model, save_model
data, model = t.load_data(t.CONFIG.data), load_model(sys.argv[1], t.VQVAE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (lambda: t.train_plain(sys.argv[1]), lambda: save_model(model, sys.argv[1])):
    try: write()
    except VQGenError as error: print(error)
"""


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    "No file may grow beyond a few KB: one sentence, the old checkpoint stays whole, and it goes on later."
    refusal(train_plain, tmp_path / "parts", lambda data: Stopping(data, 3))
    before = contents(tmp_path)
    result = python(FULL, tmp_path / "parts")
    said = result.stdout.splitlines()
    assert result.returncode == 0 and len(said) == 2, result.stderr
    assert all(one_sentence(line) and "cannot write" in line and "File too large" in line for line in said)
    assert str(tmp_path / "parts/state/train") in said[0] and contents(tmp_path) == before
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


# --- two trainings in one folder ---

WAITING = """
import sys, tiny
class Waiting(tiny.Stopping):
    def __getitems__(self, indices):
        print("training", flush=True)
        sys.stdin.read()
"""


PLAIN = "tiny.train_plain(sys.argv[1] + '/vqvae', lambda data: Waiting(data, 0))"
EXPERIMENT = """
import vqgen.experiment
vqgen.experiment.load_splits = lambda config: (Waiting(tiny.splits()[0], 0), tiny.splits()[1])
vqgen.experiment.train_vqvae(tiny.CONFIG, sys.argv[1])
"""


@pytest.mark.parametrize("start", [PLAIN, EXPERIMENT], ids=["train", "experiment"])
def test_second_training_in_a_folder_is_refused(tmp_path, start):
    "While the first lives: also with --fresh, and without a trace. When it is killed, the folder is free."
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([sys.executable, "-c", WAITING + start, str(tmp_path)], cwd=HERE, **pipes)
    try:
        assert child.stdout.readline() == b"training\n"
        before = contents(tmp_path)
        for said in (refusal(train_plain, tmp_path / "vqvae"),
                     refusal(train_vqvae, changed(CONFIG, seed=5), tmp_path),
                     refusal(train_vqvae, CONFIG, tmp_path, fresh=True)):
            assert "another training runs" in said and str(tmp_path / "vqvae") in said
        assert contents(tmp_path) == before
        train_plain(tmp_path / "elsewhere", steps=1)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    train_vqvae(CONFIG, tmp_path)
    assert load_step(tmp_path / "vqvae", "vqvae") == 4


def test_lock_is_no_training_that_has_begun(tmp_path):
    "Refused before its first checkpoint, a training leaves the config of whoever comes next."
    elsewhere = changed(CONFIG, data=changed(CONFIG.data, source="nowhere.parquet"))
    with pytest.raises(VQGenError): train_vqvae(elsewhere, tmp_path)
    train_vqvae(CONFIG, tmp_path)
    assert "nowhere" not in (tmp_path / "vqvae/config.yaml").read_text("utf-8")
