"""The cost model counts what it should, and the three recipes cost no more than they did."""

import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "scripts"
STORED = Path(__file__).with_name("cost_figures.json")  # of `--suite cost`, task on


@pytest.fixture
def benchmarks(monkeypatch):
    """The modules `cost`, `fusion` and `suites` of scripts/benchmarks."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks import cost, fusion, suites

    yield {"cost": cost, "fusion": fusion, "suites": suites}
    for name in [name for name in sys.modules if name.startswith("benchmarks")]:
        monkeypatch.delitem(sys.modules, name)


def test_products_and_additions_are_counted_by_hand(benchmarks):
    counter = benchmarks["cost"].Counter()
    with torch.device("meta"), counter:
        first, second = torch.zeros(4, 8), torch.zeros(8, 2)
        counter.phases["objective"] = benchmarks["cost"].Cost()
        product = first @ second
        _ = product.T + 1  # a view launches nothing
    found = counter.phases["objective"]
    assert found.launches == 2
    assert found.flop == 2 * 4 * 8 * 2
    assert found.bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2) + 4 * (4 * 2 + 4 * 2)


def test_elementwise_operations_join_the_kernel_that_needs_them(benchmarks):
    cost, fusion = benchmarks["cost"], benchmarks["fusion"]
    counter = cost.Counter()
    with torch.device("meta"):
        images = torch.zeros(10, 10)
        weights = torch.zeros(10, 10)
        counter.fusion = fusion.Fusion()
        with counter:
            bright = (images * 2).clamp(0, 1)
            out = (bright @ weights) + 1
            mean = (out * out).mean()
    kernels = counter.fusion.kernels([out, mean])
    # bright is written for the product; the product; the mean, which squares its input itself; out.
    assert [moved for _, moved in kernels] == [800, 1200, 404, 800]
    assert [flop for flop, _ in kernels] == [0, 2000, 0, 0]


@pytest.mark.parametrize("name", json.loads(STORED.read_text()))
def test_recipes_cost_no_more_than_stored(benchmarks, name):
    """Raise the stored figures only together with the table of scripts/benchmarks/README.md."""
    suites = benchmarks["suites"]
    [result] = suites._cost(name, suites.COST_RECIPES[name], "on")
    for figure, stored in json.loads(STORED.read_text())[name].items():
        assert result.figures[figure] <= 1.05 * stored, figure
