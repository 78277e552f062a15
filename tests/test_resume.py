"A training that is killed again and again, in steps and in saves, ends in the very bytes of one left alone."
import json
import os
import random
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from tiny import FITS, Stopping, scraps, unchanged, weights

from vqgen.training.checkpoints import RunFolder, newest_state

STEPS, EVERY = 30, 2
DEATHS = 10


@pytest.mark.slow
@pytest.mark.parametrize("model", FITS)
def test_killed_ten_times_is_as_never_killed(own_caches, model, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run([sys.executable, __file__, model, str(tmp_path)], cwd=Path(__file__).parent,
                            env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert len(report["deaths"]) == DEATHS and report["inside a save"] >= 3, report
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert (tmp_path / "parts/config.json").read_bytes() == (tmp_path / "whole/config.json").read_bytes()
    assert not scraps(tmp_path)


# --- what follows runs in a process of its own, which forks another for each life of the training ---

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir",
          "shutil.rmtree", "shutil.copyfile"}


def live(fit, folder, report, death=None):
    """One life of the training: it tells `report` the step and the file operations of each finished save.

    `death` is None, `("step", n)` for a SIGKILL while batch n is read, or `("save", n)` for one at
    the n-th file operation in saves.
    """
    kind, number = death or ("", 0)
    seen, saving = [], []
    save = RunFolder.save

    def saved(run, state, *arguments, **options):
        before = len(seen)
        saving.append(run)
        save(run, state, *arguments, **options)
        saving.clear()
        os.write(report, f"{state.step} {len(seen) - before}\n".encode())

    def operation(event, arguments):
        if not saving or event not in EVENTS: return
        seen.append(event)
        if kind == "save" and len(seen) == number: os.kill(os.getpid(), signal.SIGKILL)
    RunFolder.save = saved
    sys.addaudithook(operation)
    wrap = (lambda data: Stopping(data, number, signal.SIGKILL)) if kind == "step" else unchanged
    fit(folder, wrap, steps=STEPS, save_every=EVERY)


def fork(*arguments):
    "Call `live` in a forked process; returns its exit code and the reported pairs (step, operations)."
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try: live(*arguments[:2], writing, *arguments[2:])
        except BaseException: traceback.print_exc()
        else: os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe: lines = pipe.read().split("\n")[:-1]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, [tuple(map(int, line.split())) for line in lines]


def main(model, folder):
    fit, draw = FITS[model], random.Random(model)
    whole, parts = Path(folder) / "whole", Path(folder) / "parts"
    fit(Path(folder) / "first", steps=1)   # imports what is imported late and builds the data, for all lives
    code, saves = fork(fit, whole)
    assert code == 0 and [step for step, _ in saves] == [*range(EVERY, STEPS + 1, EVERY)], (code, saves)
    operations, newest = saves[5][1], 0
    report = {"deaths": [], "inside a save": 0}
    for life in range(DEATHS):
        death = ("save", draw.randint(1, operations)) if life % 2 else ("step", draw.randint(1, EVERY + 1))
        code, saves = fork(fit, parts, death)
        assert code == -signal.SIGKILL, (death, code, saves)
        state, note = newest_state(parts / "state/train")
        found = state["step"] if state else 0
        assert note == "", (death, note)   # none is damaged, and none is lost
        assert found >= max([newest, *(step for step, _ in saves)]), (death, found, saves)
        report["inside a save"] += bool(scraps(parts))
        report["deaths"].append([*death, found])
        newest = found
    code, saves = fork(fit, parts)
    assert code == 0 and saves[-1][0] == STEPS, (code, saves)
    print(json.dumps(report))


if __name__ == "__main__": main(*sys.argv[1:])
