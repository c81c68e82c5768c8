"""What an evaluation says of each single query: the input of significance tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from mrmodel.evaluate.columns import Floats


@dataclass(frozen=True, slots=True)
class PerQuery:
    """Figures of each query, in the order of the annotation file.

    Attributes:
        qids: n query ids.
        vids: n video ids; queries of one video are not independent.
        values: figure name -> (n,) values whose mean is the figure in the metrics (before
            rounding); NaN where a query does not enter that mean.
        details: the parts behind them, e.g. ``ap`` (n, thresholds).
    """

    qids: list[int | str]
    vids: list[str]
    values: dict[str, Floats]
    details: dict[str, Floats] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, object]]:
        """The details by ``str(qid)``, as plain lists."""
        plain = {name: table.tolist() for name, table in self.details.items()}
        return {
            str(qid): {name: rows[query] for name, rows in plain.items()}
            for query, qid in enumerate(self.qids)
        }
