"""``python -I smoke_script.py MODEL``: run an MLflow model on its example, print JSON.

It imports nothing of `mrmodel`: the code inside the model must be used.
"""

import gc
import json
import statistics
import sys
import time
from pathlib import Path

_TIMED = 3


def main(folder: Path) -> None:
    """Print the predictions, the median seconds per query, and the path of the model's code."""
    # MLflow and PyTorch make a million objects that stay: nearly a quarter of the time to import
    # them goes into looking for garbage among these, here and at the end of the process.
    gc.disable()
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(folder.as_uri())
    gc.freeze()
    gc.enable()
    rows = json.loads((folder / "serving_input_example.json").read_text())["inputs"]
    # The first call is a warm-up.
    answers = model.predict(pd.DataFrame(rows))
    seconds = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        model.predict(pd.DataFrame(rows[:1]))
        seconds.append(time.perf_counter() - started)
    code = sys.modules["mrmodel"].__file__
    found = {"answers": answers, "latency_s": statistics.median(seconds), "code": code}
    sys.stdout.write("\n" + json.dumps(found, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
