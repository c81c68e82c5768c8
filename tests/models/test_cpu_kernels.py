"""The fused CPU functions against the same layers in autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.layers.attention import attend
from mrmodel.models.layers.dropout import Dropout, DropPath, dropout
from mrmodel.models.layers.feed_forward import FeedForward
from mrmodel.models.layers.projection import ProjectionLayer

D = 12


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces, the last one incomplete, in tensors of test size."""
    monkeypatch.setattr(cpu_kernels, "CHUNK", 80)
    torch.manual_seed(0)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial zeros and ones."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def assert_same(
    first: Callable[[], Tensor], second: Callable[[], Tensor], inputs: list[Tensor]
) -> None:
    """Equal values and equal gradients."""
    found, expected = first(), second()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    for gradient, reference in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_feed_forward(activation: str) -> None:
    block, norm = shaken(FeedForward(D, 20, 0.0, activation)), shaken(nn.LayerNorm(D))
    source, residual = leaves((3, 3, D), (3, 3, D))
    layers = (block.expand, block.activation, block.contract)
    assert_same(
        lambda: cpu_kernels.feed_forward(source, residual, layers, norm, Dropout(0.0)),
        lambda: norm(residual + block.contract(block.activation(block.expand(source)))),
        [source, residual, *block.parameters(), *norm.parameters()],
    )


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_feed_forward_at_rest(activation: str) -> None:
    block, norm = shaken(FeedForward(D, 20, 0.3, activation)).eval(), shaken(nn.LayerNorm(D))
    source, residual = leaves((3, 3, D), (3, 3, D))
    expected = block(source, residual, norm)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(block(source, residual, norm), expected.detach())


def test_doubled_feed_forward() -> None:
    block, norm = shaken(FeedForward(D, 20, 0.0, "prelu")), shaken(nn.LayerNorm(D))
    (source,) = leaves((3, 3, D))
    assert_same(
        lambda: block.train().doubled(source, norm),
        lambda: norm(2.0 * block.contract(block.activation(block.expand(source)))),
        [source, *block.parameters(), *norm.parameters()],
    )
    with torch.no_grad():
        torch.testing.assert_close(
            block.eval().doubled(source, norm), block.train().doubled(source, norm)
        )


@pytest.mark.parametrize("with_norm", [True, False])
def test_add_projected(with_norm: bool) -> None:
    linear, norm = shaken(nn.Linear(8, D)), shaken(nn.LayerNorm(D))
    source, residual = leaves((3, 3, 8), (3, 3, D))
    parameters = [*linear.parameters(), *(norm.parameters() if with_norm else ())]

    def plain() -> Tensor:
        total = residual + linear(source)
        return norm(total) if with_norm else total

    assert_same(
        lambda: cpu_kernels.add_projected(
            source, residual, linear, norm if with_norm else None, Dropout(0.0)
        ),
        plain,
        [source, residual, *parameters],
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_dropped_paths(with_bias: bool) -> None:
    """The fused sum draws the same whole branches as the plain module, forward and backward."""
    linear, norm = shaken(nn.Linear(8, D, bias=with_bias)), shaken(nn.LayerNorm(D))
    source, residual = leaves((6, 3, 8), (6, 3, D))
    branch = DropPath(0.5).train()

    def seeded(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            torch.manual_seed(11)
            return function()

        return run

    assert_same(
        seeded(lambda: cpu_kernels.add_projected(source, residual, linear, norm, branch)),
        seeded(lambda: norm(residual + branch(linear(source)))),
        [source, residual, *linear.parameters(), *norm.parameters()],
    )
    torch.manual_seed(11)
    changed = (cpu_kernels.add_projected(source, residual, linear, None, branch) != residual).any(
        -1
    )
    assert torch.equal(changed.all(1), changed.any(1))
    assert 0 < changed.all(1).sum() < 6


def test_feed_forward_drops_units_and_paths_with_their_own_probabilities() -> None:
    block, norm = shaken(FeedForward(D, 20, 0.0, "prelu", 0.5)).train(), shaken(nn.LayerNorm(D))
    source, residual = leaves((6, 3, D), (6, 3, D))

    def plain() -> Tensor:
        torch.manual_seed(11)
        hidden = block.contract(block.activation(block.expand(source)))
        return norm(residual + block.branch(hidden))

    def fused() -> Tensor:
        torch.manual_seed(11)
        return block(source, residual, norm)

    assert_same(fused, plain, [source, residual, *block.parameters(), *norm.parameters()])
    units = FeedForward(D, 20, 0.5, "prelu", 0.0).train()
    first, second = (units(source, residual, norm) for _ in range(2))
    assert bool((first != second).flatten(1).any(1).all())


@pytest.mark.parametrize("source_learns", [True, False])
def test_project(source_learns: bool) -> None:
    norm, linear = shaken(nn.LayerNorm(7)), shaken(nn.Linear(7, D))
    source = torch.randn(3, 3, 7, requires_grad=source_learns)
    inputs = [*norm.parameters(), *linear.parameters(), *([source] if source_learns else [])]
    assert_same(
        lambda: cpu_kernels.project(source, norm, linear, 0.0), lambda: linear(norm(source)), inputs
    )


@pytest.mark.parametrize("masked", [True, False])
def test_attend(masked: bool) -> None:
    query, key, value = leaves((5, 4, 16), (5, 6, 16), (5, 6, 8))
    allowed = torch.rand(5, 1, 1, 6) < 0.6 if masked else None
    if allowed is not None:
        allowed[..., 0] = True
    assert_same(
        lambda: cpu_kernels.attend(query, key, value, 4, allowed, 0.0),
        lambda: attend(query, key, value, 4, allowed, 0.0),
        [query, key, value],
    )


@pytest.mark.parametrize("heads_of_mask", [0, 1, 4])
def test_attend_at_rest(heads_of_mask: int) -> None:
    query, key, value = leaves((5, 4, 16), (5, 6, 16), (5, 6, 8))
    allowed = torch.rand(5, heads_of_mask, 4, 6) < 0.6 if heads_of_mask else None
    if allowed is not None:
        allowed[..., 0] = True
    expected = attend(query, key, value, 4, allowed)
    assert expected.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(attend(query, key, value, 4, allowed), expected.detach())
        if allowed is not None:
            one_for_all = attend(query, key, value, 4, allowed[:1])
            expected = attend(query, key, value, 4, allowed[:1].expand(5, -1, -1, -1))
            torch.testing.assert_close(one_for_all, expected)


def test_attend_reads_slices() -> None:
    """Queries and keys are often the two halves of one product."""
    (both, value) = leaves((3, 4, 16), (3, 4, 8))
    query, key = both.chunk(2, dim=-1)
    assert_same(
        lambda: cpu_kernels.attend(query, key, value, 2, None, 0.0),
        lambda: attend(query, key, value, 2, None, 0.0),
        [both, value],
    )


def test_modules_choose_the_fused_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, source = ProjectionLayer(7, D, 0.5, relu=True), torch.randn(2, 3, 7)
    called = []
    monkeypatch.setattr(cpu_kernels, "project", lambda *a: called.append(1) or torch.zeros(2, 3, D))
    layer.train()(source)
    assert called == [1]
    layer.eval()(source)
    with torch.autocast("cpu", torch.bfloat16):
        layer.train()(source)
    assert called == [1]


def test_keys_wider_than_values_choose_the_function_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (rows,) = leaves((2, 3, D))
    called = []
    monkeypatch.setattr(cpu_kernels, "attend_at_rest", lambda *a: called.append(1) or a[0])
    attend(torch.cat((rows, rows), dim=2), torch.cat((rows, rows), dim=2), rows, 2, None)
    with torch.no_grad():
        attend(rows, rows, rows, 2, None)
        assert not called
        attend(torch.cat((rows, rows), dim=2), torch.cat((rows, rows), dim=2), rows, 2, None)
    assert called == [1]


def numeric_gradient(function: Callable[[Tensor], Tensor], point: Tensor, axis: Tensor) -> float:
    step = 2e-3
    return float((function(point + step * axis) - function(point - step * axis)) / (2 * step))


@pytest.mark.parametrize("branch", [Dropout(0.3), DropPath(0.3)], ids=["unit", "path"])
@pytest.mark.parametrize(
    "kind", ["feed_forward", "feed_forward_doubled", "add_projected", "project", "attend"]
)
def test_gradients_with_dropout(kind: str, branch: Dropout | DropPath) -> None:
    """With the seed, and so the masks, held fixed each function is smooth: compare differences."""
    norm, linear = shaken(nn.LayerNorm(D)), shaken(nn.Linear(D, D))
    block = shaken(FeedForward(D, 20, 0.0, "prelu"))
    layers = (block.expand, nn.PReLU(), block.contract)
    residual, key, value = torch.randn(9, D), torch.randn(5, 6, D), torch.randn(5, 6, D)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "feed_forward": lambda x: cpu_kernels.feed_forward(x, residual, layers, norm, branch),
        "feed_forward_doubled": lambda x: cpu_kernels.feed_forward_doubled(x, layers, norm, branch),
        "add_projected": lambda x: cpu_kernels.add_projected(x, residual, linear, norm, branch),
        "project": lambda x: cpu_kernels.project(x, norm, linear, 0.3),
        "attend": lambda x: cpu_kernels.attend(x, key, value, 2, None, 0.3),
    }
    point = torch.randn(5, 4, D) if kind == "attend" else torch.randn(9, D)
    weights = torch.randn_like(functions[kind](point))

    def value_at(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return (functions[kind](x) * weights).sum()

    point.requires_grad_()
    (gradient,) = torch.autograd.grad(value_at(point), point)
    axis = torch.randn_like(point)
    with torch.no_grad():
        expected = numeric_gradient(value_at, point.detach(), axis)
    assert float((gradient * axis).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.85])
def test_share_of_dropped_elements(p: float) -> None:
    count = 4_000_000
    kept = dropout(torch.ones(count), p)
    share = float((kept > 0).float().mean())
    # Five standard deviations of a fair draw, plus the documented rounding of the probability.
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-4
    torch.testing.assert_close(kept[kept > 0].unique(), torch.tensor([1 / (1 - p)]))


def test_dropout_backward_uses_the_same_mask() -> None:
    values = torch.ones(1000, requires_grad=True)
    dropped = Dropout(0.3).train()(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_dropout_draws_differ_between_calls() -> None:
    ones = torch.ones(1000)
    assert not torch.equal(dropout(ones, 0.5), dropout(ones, 0.5))


def test_dropped_pairs_are_independent() -> None:
    """Neighbouring elements share their random words, yet not their fate."""
    kept = (dropout(torch.ones(2_000_000), 0.1) > 0).float().view(-1, 64)
    correlation = torch.corrcoef(kept.T)
    assert (correlation - torch.eye(64)).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["feed_forward", "attend", "project"])
def test_dropout_keeps_the_mean(kind: str) -> None:
    """The average over many draws of a linear function of the masks is its value without them."""
    torch.manual_seed(4)
    linear, norm = nn.Linear(D, D), nn.LayerNorm(D)
    source, key, value = torch.randn(4, D), torch.randn(2, 6, D), torch.randn(2, 6, D)
    query = torch.randn(2, 4, D)

    def run(p: float) -> Tensor:
        if kind == "project":
            return cpu_kernels.project(source, norm, linear, p)
        if kind == "attend":
            return cpu_kernels.attend(query, key, value, 2, None, p)
        return cpu_kernels.add_projected(source, torch.zeros(4, D), linear, None, Dropout(p))

    mean = torch.stack([run(0.4) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, run(0.0), rtol=0.0, atol=0.12)
