import pytest

from mrmodel.experiments.seeds import as_markdown, seeds_table


def runs(*values: float) -> list[dict[str, dict[str, float]]]:
    return [{"finetuned": {"mAP": value}} for value in values]


def test_mean_and_sample_standard_deviation() -> None:
    row = seeds_table(runs(30.0, 32.0, 37.0))["finetuned"]["mAP"]
    assert row["mean"] == pytest.approx(33.0)
    assert row["sd"] == pytest.approx(13.0**0.5)


def test_one_seed_has_no_spread() -> None:
    assert seeds_table(runs(30.0))["finetuned"]["mAP"] == {"mean": 30.0, "sd": 0.0}


def test_the_table_names_the_model_and_the_number_of_seeds() -> None:
    text = as_markdown({"qd_detr": seeds_table(runs(30.0, 32.0))}, {"qd_detr": 2})
    assert "**qd_detr**, mean ± standard deviation over 2 seeds" in text
    assert "| finetuned | 31.00 ± 1.41 |" in text
