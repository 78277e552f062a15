"What every sentence of a `VQGenError` must be: one line, short, no path twice, no bare name of an exception."
import re

LENGTH = 240                                  # characters, with a path counted as its last name
PATH = re.compile(r"(?<![\w:/])~?/(?:[\w.+@=-]+/)*[\w.+@=-]+")
TYPE = re.compile(r"\b\w+(?:Error|Exception|Warning)\b")


def shortened(text): return PATH.sub(lambda match: match[0].rpartition("/")[2], text)


def complaints(sentence):
    "What is wrong with `sentence`, a list of words to the one who wrote it."
    text = str(sentence)
    paths, found = PATH.findall(text), []
    if len(text.splitlines()) != 1: found.append("not one line")
    if not 20 < len(shortened(text)) <= LENGTH: found.append(f"{len(shortened(text))} characters")
    twice = {path for path in paths if paths.count(path) > 1}
    if twice: found.append(f"twice: {', '.join(twice)}")
    if "Traceback" in text: found.append("a stack trace")
    if re.fullmatch(rf"\W*{TYPE.pattern}\W*", text): found.append("nothing but the name of an exception")
    return found
