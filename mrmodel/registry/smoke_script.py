"""``python -I smoke_script.py MODEL``: load an MLflow model, answer its example, say so as JSON.

It imports nothing of `mrmodel`: what answers must be the code inside the model.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import mlflow.pyfunc
import pandas as pd

_TIMED = 3


def main(folder: Path) -> None:
    """Print the answers, the median seconds of one row, and where the model's code lies."""
    model = mlflow.pyfunc.load_model(str(folder))
    rows = json.loads((folder / "serving_input_example.json").read_text())["inputs"]
    # The first call pays what is paid once.
    answers = model.predict(pd.DataFrame(rows))
    seconds = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        model.predict(pd.DataFrame(rows[:1]))
        seconds.append(time.perf_counter() - started)
    code = sys.modules["mrmodel"].__file__
    found = {"answers": answers, "latency_s": statistics.median(seconds), "code": code}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
