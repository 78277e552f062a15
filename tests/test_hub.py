"Models that travel: to a Hub on 127.0.0.1 and back; what is fetched, what a card says, what is refused."
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from hub_server import hub_server, variables
from tiny import CONFIG, coded, contents, refusal, splits

from vqgen.files import fingerprint
from vqgen.hub import RUN_FILES, data_lines, explain_hub, is_hub_id
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import new_prior

CAPTION = "a person with red hair"
SCRIPT = """
import json, sys
from vqgen.errors import VQGenError
from vqgen.pipeline import Pipeline
def attempt(options):
    try: return Pipeline.from_pretrained(**options)("a person with red hair")[0].tobytes().hex()
    except VQGenError as fault: return str(fault)
def push(source, repo_id, options):
    try: return Pipeline.from_pretrained(source, "lstm").push_to_hub(repo_id, **options)
    except VQGenError as fault: return str(fault)
tasks = json.loads(sys.argv[1])
print(json.dumps([attempt(task) if isinstance(task, dict) else push(*task) for task in tasks]))
"""


def in_a_process(tasks, environment):
    "What loading and drawing (a dict each), or pushing (a list each), gives: pixels or a sentence."
    command = [sys.executable, "-c", SCRIPT, json.dumps(tasks)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def pixels(pipe): return pipe(CAPTION)[0].tobytes().hex()


@pytest.fixture(scope="module")
def shipped(): return Pipeline.from_pretrained("avatars-hour", "lstm")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "A Hub that has the shipped VQ-VAE and LSTM beside files that nobody wants, and one of something else."
    root = tmp_path_factory.mktemp("hub")
    faces, other = root / "models" / "somebody" / "faces", root / "models" / "somebody" / "bert"
    for part in ("vqvae", "lstm"): shutil.copytree(find_run("avatars-hour") / part, faces / part)
    state = faces / "vqvae" / "state" / "vqvae" / "step-00000002"
    for folder in (state, other): folder.mkdir(parents=True)
    for path in (faces / "lstm" / "pytorch_model.bin", faces / "setup.py", state / "training.pt",
                 state / "model.safetensors", faces / "lstm" / "run.pkl"): path.write_bytes(b"not wanted")
    shutil.copytree(faces, faces.with_name("secret"))
    (faces.with_name("secret") / ".token").write_text("hf_mine")
    shutil.copytree(faces, faces.with_name("faces@v1"))
    (other / "config.json").write_text("{}")
    with hub_server(root) as server: yield server


def test_a_model_is_fetched_and_kept(hub, shipped, tmp_path):
    "By its name, a branch, a token; only files of a run; then without a network; else one sentence."
    faces = {"run": "somebody/faces", "prior": "lstm"}
    secret = {"run": "somebody/secret", "prior": "lstm"}
    tasks = [secret, {"run": "somebody/nothing"}, {**faces, "revision": "v7"}, {"run": "somebody/bert"},
             faces, {**faces, "revision": "v1"}, {**secret, "token": "hf_mine"}]
    online = in_a_process(tasks, variables(tmp_path, hub.endpoint))
    assert online[4:] == [pixels(shipped)] * 3
    for sentence, part in zip(online[:4], ["token", "check the name", "'v7'", "no vqvae/config.json"]):
        assert part in sentence and len(sentence) <= 240 and "\n" not in sentence
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for _, path, _ in hub.asked if "/resolve/" in path}
    assert {path.split("/")[-1] for path in fetched} <= {*RUN_FILES, "README.md"}
    assert not any("state" in path for path in fetched) and "lstm/tokenizer.json" in fetched
    kept, unknown = in_a_process([faces, {"run": "somebody/nothing"}], variables(tmp_path, offline=True))
    assert kept == pixels(shipped) and "HF_HUB_OFFLINE" in unknown
    tasks = [faces, {"run": "somebody/nothing"}, ["avatars-hour", "somebody/mine", {"token": "hf_mine"}]]
    kept, unknown, unsent = in_a_process(tasks, variables(tmp_path))
    assert kept == pixels(shipped) and "network" in unknown and "out of reach" in unsent


def test_a_model_is_pushed_and_fetched_again(hub, shipped, tmp_path):
    "A card that is there stays; a branch and a private repository are made."
    mine = ["avatars-hour", "somebody/mine"]
    tasks = [[*mine, {"token": "hf_mine", "captions": [CAPTION]}], {"run": "somebody/mine"},
             [*mine, {"token": "hf_mine", "revision": "tiny"}], {"run": "somebody/mine", "revision": "tiny"},
             ["avatars-hour", "somebody/hidden", {"token": "hf_mine", "private": True}],
             ["avatars-hour", "nobody", {}], ["avatars-hour", "somebody/written", {"token": "hf_mine"}]]
    written = hub.root / "models" / "somebody" / "written" / "README.md"
    written.parent.mkdir()
    written.write_text("by hand")
    told = in_a_process(tasks, variables(tmp_path, hub.endpoint))
    commit, again, branch, there, hidden, nameless = told[:6]
    assert f"{hub.endpoint}/somebody/mine" in commit and "somebody/mine" in branch and "hidden" in hidden
    assert again == there == pixels(shipped) and "owner/name" in nameless
    folder = hub.root / "models" / "somebody" / "mine"
    assert CAPTION in (folder / "README.md").read_text() and (folder / "samples.png").is_file()
    assert 'from_pretrained("somebody/mine")' in (folder / "README.md").read_text().replace("'", '"')
    assert written.read_text() == "by hand" and written.with_name("vqvae").is_dir()
    assert (hub.root / "models" / "somebody" / "hidden" / ".token").is_file()


def refused(status, kind):
    "An answer of the Hub as `huggingface_hub` raises it."
    from huggingface_hub import errors
    library = __import__(errors.HTTPError.__module__.split(".")[0])
    response = library.Response(status, request=library.Request("GET", "http://127.0.0.1"))
    return getattr(errors, kind)("told\nat length", response=response)


@pytest.mark.parametrize("status, kind, part", [
    (403, "GatedRepoError", "ask its owner"), (401, "HfHubHTTPError", "log in"),
    (403, "HfHubHTTPError", "token"), (503, "HfHubHTTPError", "503")])
def test_what_the_hub_answers_is_told(status, kind, part):
    def ask():
        with explain_hub("somebody/faces"): raise refused(status, kind)
    assert part in refusal(ask)


def test_saved_and_loaded_it_is_the_same(shipped, tmp_path):
    folder = shipped.save_pretrained(tmp_path / "saved", license="cc0-1.0")
    names = {"README.md", "samples.png", *(f"vqvae/{name}" for name in RUN_FILES[:3]),
             *(f"lstm/{name}" for name in RUN_FILES[:5])}
    assert contents(folder).keys() == names
    again = Pipeline.from_pretrained(folder)
    assert fingerprint(again.prior) == fingerprint(shipped.prior) and pixels(again) == pixels(shipped)
    assert again.origin == shipped.origin
    head, card = (folder / "README.md").read_text().split("---\n", 2)[1:]
    assert yaml.safe_load(head) == {"library_name": "vqgen", "pipeline_tag": "text-to-image",
                                    "tags": ["vqgen", "vq-vae", "lstm"], "license": "cc0-1.0"}
    for fact in ("32 x 32", "8 x 8", "4,000", "1,800", "CC0 1.0", "30,000", "LSTMPrior"): assert fact in card
    (folder / "README.md").write_text("mine")
    Pipeline.from_pretrained("avatars-hour", "cftn").save_pretrained(folder)      # a second prior
    assert Pipeline.from_pretrained(folder, "cftn").caption is not None
    assert (folder / "README.md").read_text() == "mine"


def test_models_of_no_run_are_saved(tmp_path):
    "In half precision, too: what is loaded draws the same; nothing is made up about the training."
    vqvae, tokenizer, data, _ = coded()
    prior = new_prior("cftn-v2", CONFIG.cftn_v2.model, vqvae, tokenizer, splits()[0].image_size)
    pipe = Pipeline(vqvae, prior, tokenizer)
    folder = pipe.save_pretrained(tmp_path / "one", captions=[CAPTION, ""])
    assert pixels(Pipeline.from_pretrained(folder)) == pixels(pipe)
    card = (folder / "README.md").read_text()
    assert "Nothing is known here of the training" in card and "no caption" in card
    other = pipe.save_pretrained(tmp_path / "three", captions=CAPTION) / "README.md"
    assert f"*{CAPTION}*" in other.read_text() and "captions" in refusal(pipe.save_pretrained, tmp_path, ())
    half = Pipeline.from_pretrained(folder).to(torch.bfloat16)
    again = Pipeline.from_pretrained(half.save_pretrained(tmp_path / "two"))
    assert again.dtype == torch.float32 and torch.equal(again.prior.code_head.weight.bfloat16(),
                                                        half.prior.code_head.weight)


def test_nobodys_work_is_written_over(shipped, tmp_path):
    vqvae, tokenizer, data, _ = coded()
    prior = new_prior("lstm", CONFIG.lstm.model, vqvae, tokenizer, splits()[0].image_size)
    folder = shipped.save_pretrained(tmp_path / "saved")
    before = contents(folder)
    assert "another VQ-VAE" in refusal(Pipeline(vqvae, prior, tokenizer).save_pretrained, folder)
    (folder / "lstm" / "state").mkdir()
    assert "training" in refusal(shipped.save_pretrained, folder)
    assert contents(folder) == before
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(shipped.save_pretrained, tmp_path / "file" / "run")


def test_names_of_models_and_data():
    assert is_hub_id("a/b") and is_hub_id("org.x/name-1_2")
    assert not any(map(is_hub_id, ["a", "runs/a", "./a", "a/b/c", "/a/b", "a/", "~/a", "a b/c"]))
    assert "huggingface.co/datasets/somebody/portraits" in data_lines({"source": "somebody/portraits"})
    assert "/home" not in data_lines({"source": "/home/me/pictures"})
