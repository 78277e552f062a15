"Two processes are as one: the same curve, one writer, and no hang when one of them dies."
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import FITS, VQGEN, one_sentence, write_config

HERE = Path(__file__).parent
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo"}
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
pytestmark = pytest.mark.slow   # each test starts Python several times


def environment(rank, world_size, port):
    "What `accelerate launch` tells a process."
    return {**os.environ, **QUIET, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(arguments, processes=2):
    "Start `arguments` in `processes` processes that form one group."
    port = free_port()
    arguments = [*map(str, arguments)]
    return [subprocess.Popen(arguments, cwd=HERE, env=environment(rank, processes, port), **PIPES)
            for rank in range(processes)]


def fit(model, folder, processes, **changes):
    "Train `model` in `folder`; returns what each process printed, as JSON."
    together = start([sys.executable, __file__, model, folder, json.dumps(changes)], processes)
    results = [process.communicate(timeout=240) for process in together]
    assert not any(process.returncode for process in together), results
    return [json.loads(out.splitlines()[-1]) for out, _ in results]


def losses(folder):
    lines = (folder / "metrics-train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("model", [name for name in FITS if name in ("vqvae", "lstm", "transformer")])
def test_two_processes_follow_the_curve_of_one(own_caches, tmp_path, model):
    "The joined batch in one process, its halves in two: the same losses, the same weights, a single writer."
    changes = {"steps": 20, "eval_every": 2, "save_every": 10, "chance": False}
    fit(model, tmp_path / "one", 1, **changes)
    written = fit(model, tmp_path / "two", 2, **changes)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert len(losses(tmp_path / "one")) >= 10
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert all(two[name].allclose(one[name], atol=2e-3) for name in one if one[name].is_floating_point())
    assert written[0]["written"] and not written[1]["written"], written[1]
    assert written[0]["weights"] == written[1]["weights"], "the processes end with different weights"


def test_begun_alone_it_goes_on_in_two_processes(own_caches, tmp_path):
    "Longer, in larger batches and with the best model in the end: as if it had stayed alone."
    changes = {"eval_every": 2, "save_every": 10, "chance": False, "keep_best": True}
    for folder in ("one", "two"): fit("vqvae", tmp_path / folder, 1, steps=10, **changes)
    fit("vqvae", tmp_path / "one", 1, steps=20, batch_size=16, **changes)
    first, second = fit("vqvae", tmp_path / "two", 2, steps=20, batch_size=16, **changes)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    assert first["weights"] == second["weights"] and not second["written"]


@pytest.mark.parametrize("model", [name for name in FITS if name != "vqvae"])
def test_priors_train_in_two_processes(own_caches, tmp_path, model):
    "Also where a loss leaves parts of the model unused, and where each process draws masks of its own."
    first, second = fit(model, tmp_path, 2, steps=12, eval_every=4)
    assert first["weights"] == second["weights"] and not second["written"]


def test_batch_that_cannot_be_shared_is_refused(own_caches, tmp_path):
    together = start([sys.executable, __file__, "vqvae", tmp_path, json.dumps({"batch_size": 7})])
    for process in together:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 3 and "train.batch_size 7" in out, (out, err)
        assert one_sentence(out.strip()), (out, err)


def command(tmp_path):
    config = write_config(tmp_path / "tiny.yaml")
    return [VQGEN, "train", "vqvae", "--config", config, "--run", tmp_path / "run",
            "--train.steps", "1000000", "--train.save_every", "10"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run(own_caches, tmp_path, victim):
    "Within a minute, with a sentence; started again it goes on from the last checkpoint."
    together = start(command(tmp_path))
    seen = ""
    while not re.search(r"\b[2-9]\d/1000000", seen):
        part = together[0].stderr.read(1)
        assert part, seen
        seen += part
    together[victim].kill()
    together[victim].communicate()
    survivor = together[1 - victim]
    out, err = survivor.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert survivor.returncode == 1 and last.startswith("error: another process of this training died"), err
    assert one_sentence(last) and "Traceback" not in err, err
    assert list((tmp_path / "run/vqvae/state/vqvae").glob("step-*"))


def test_torchrun_and_sigterm(own_caches, tmp_path):
    "As a preemptible machine does it: SIGTERM at the launcher saves, and started again it goes on."
    own = ("--run", tmp_path / "run")   # torchrun takes --run for one of its own
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
              "--no-python", *(part for part in command(tmp_path) if part not in own)]
    steps = [0]
    for _ in range(2):
        process = subprocess.Popen([*map(str, launch)], cwd=tmp_path, env={**os.environ, **QUIET}, **PIPES)
        seen = ""
        while max([0, *map(int, re.findall(r"(\d+)/1000000", seen))]) < steps[-1] + 25:
            part = process.stderr.read(1)
            assert part, seen
            seen += part
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=90)
        found = re.search(r"error: stopped at step (\d+) of 1000000", seen + err)
        assert process.returncode and found, seen + err
        steps.append(int(found[1]))
    assert 0 < steps[1] < steps[2]


# --- what follows runs in each of the processes ---

def main(model, folder, changes):
    from vqgen.errors import VQGenError
    from vqgen.files import fingerprint
    changes, written = json.loads(changes), []

    def opened(event, arguments):
        if event != "open" or not isinstance(arguments[0], str) or not arguments[0].startswith(folder): return
        if arguments[2] & (os.O_WRONLY | os.O_RDWR): written.append(arguments[0])
    sys.addaudithook(opened)
    try: trained, _ = FITS[model](folder, **changes)
    except VQGenError as error:
        print(error)
        sys.exit(3)
    print(json.dumps({"written": written, "weights": fingerprint(trained)}))


if __name__ == "__main__": main(*sys.argv[1:])
