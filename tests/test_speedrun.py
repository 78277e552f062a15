"The speedrun goes from nothing to a row of the README's table, and says which rules were not kept."
import re
import subprocess
import sys

import pytest
from paths import ROOT
from tiny import write_config


@pytest.mark.slow
def test_a_run_that_breaks_the_rules_does_not_count(tmp_path):
    config = write_config(tmp_path / "tiny.yaml")
    command = [sys.executable, ROOT / "tests" / "benchmarks" / "speedrun.py", "--config", config]
    ended = subprocess.run([*command, "--data.count", "300"], capture_output=True, text=True, check=True)
    row, machine, *faults = ended.stdout.splitlines()[-6:]
    assert re.fullmatch(r"\d+\.\d minutes, prompt accuracy \d+\.\d%, copies \d+\.\d dB", row)
    assert machine.startswith("2 threads, ")
    assert faults == ["does not count: data is not that of the preset avatars",
                      "does not count: classifier is not that of the preset avatars",
                      "does not count: the copies are below 30 dB",
                      "does not count: the accuracy is below 80%"]
