"""How well a run's one pass hears captions as people type them: `tests/captions_by_hand.json`.

    python tests/benchmarks/bench_words.py [--run avatars-hour] [--pictures 4] [--json FILE]

`--pictures` are drawn for each of the 200 captions. The run's classifier says what they show; printed is the
share of the stated attributes that are right, for each attribute and over all, beside the same for 200
captions by rule of combinations that no training has seen. "captions" counts those of which all is right.
"""
import argparse
import itertools
import json
import warnings
from collections import Counter
from pathlib import Path

from vqgen.config import load_config
from vqgen.data.avatars import ATTRIBUTES
from vqgen.data.datasets import load_data
from vqgen.evaluation.metrics import AttributeClassifier, attribute_accuracy
from vqgen.experiment import drawings_of
from vqgen.pipeline import Pipeline, find_run
from vqgen.training.checkpoints import load_model

COUNT = 200
ALL, WHOLE = "attributes", "captions"


def captions_by_hand():
    "The captions, and the attributes that each states, dicts."
    path = Path(__file__).parent.parent / "captions_by_hand.json"
    return [*zip(*json.loads(path.read_text("utf-8")))]


def held_out_captions(run):
    "As many captions of the run's validation split, and the attributes that each states."
    data = load_config(find_run(run) / "vqvae" / "config.yaml").data
    held_out = load_data(data.model_copy(update={"count": 3000}), "validation")   # the first of its faces
    said = [{name: face[name] for name in face["stated"]} for face in held_out.attributes]
    return held_out.captions[:COUNT], said[:COUNT]


def shares_right(pipe, classifier, captions, said, pictures):
    "The shares of stated attributes that are right, by attribute and of all, and of captions wholly right."
    captions, said = list(captions) * pictures, list(said) * pictures
    wanted = [{**attributes, "stated": list(attributes)} for attributes in said]
    whole, shares = attribute_accuracy(classifier.read(drawings_of(pipe, captions)), wanted)
    stated = Counter(itertools.chain.from_iterable(said))
    right = sum(shares[name] * stated[name] for name in shares)
    return {**{name: shares[name] for name in ATTRIBUTES}, ALL: right / stated.total(), WHOLE: whole}


def parse():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--run", default="avatars-hour")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--json")
    return parser.parse_args()


def main():
    asked = parse()
    warnings.simplefilter("ignore")   # many words were never seen, which is the point
    pipe = Pipeline.from_pretrained(asked.run, "cftn-v2", "cpu")
    classifier = load_model(find_run(asked.run) / "classifier", AttributeClassifier)
    sets = {"by hand": captions_by_hand(), "by rule": held_out_captions(asked.run)}
    table = {name: shares_right(pipe, classifier, captions, said, asked.pictures)
             for name, (captions, said) in sets.items()}
    print(f"{'':12}", *(f"{name:>9}" for name in table))
    for name in [*ATTRIBUTES, ALL, WHOLE]:
        print(f"{name:12}", *(f"{shares[name]:9.1%}" for shares in table.values()))
    if asked.json: Path(asked.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__": main()
