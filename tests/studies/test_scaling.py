"""The figures on scaling: what is counted, and the arithmetic on it."""

import json

import pytest
from conftest import ROOT

from cifar_jax.nn.models import NETWORKS
from cifar_jax.studies.benchmark.scaling import (
    ETHERNET,
    NVLINK,
    Collective,
    collectives,
    efficiencies,
    efficiency,
    seconds_on_paper,
    table,
    training_flops,
)

RECORD = json.loads((ROOT / "results" / "scaling.json").read_text())
PROGRAM = """
  %a = f32[64]{0} all-reduce(%x), channel_id=1
  %b = (f32[3,3,3,64]{3,2,1,0}, /*index=1*/s32[]) all-reduce(%y, %z), channel_id=2
  %c = u8[8,32]{1,0} all-gather(%w), channel_id=3
  %d = f32[8]{0} add(%all-reduce.1, %e)
  %g = bf16[2]{0} all-reduce-start(%h), channel_id=4
"""


def test_collectives_are_counted_with_their_bytes():
    assert collectives(PROGRAM) == [
        Collective("all-reduce", 256),
        Collective("all-reduce", 4 * 27 * 64 + 4),
        Collective("all-gather", 256),
        Collective("all-reduce", 4),
    ]


def test_flops_of_a_small_network_by_hand():
    """Two convolutions of 8x8 pixels, 3 to 4 to 5 channels, a pool, 5 to 10 classes; no gradient into the image."""
    first, second, linear = 64 * 27 * 4, 64 * 36 * 5, 50
    assert training_flops(((4, 5),), 8, 10) == 2 * (2 * first + 3 * second + 3 * linear)


def test_time_on_paper_by_hand():
    gradients = (1, 10**9)
    assert seconds_on_paper(*gradients, 8, NVLINK) == pytest.approx(20e-6 + 2 * 7 / 8 * 1e9 / 450e9)
    # Over Ethernet too, eight devices are one machine.
    assert seconds_on_paper(*gradients, 8, ETHERNET) == seconds_on_paper(*gradients, 8, NVLINK)
    inside = 20e-6 + 2 * 7 / 8 * 1e9 / 450e9
    assert seconds_on_paper(*gradients, 64, ETHERNET) == pytest.approx(inside + 50e-6 + 2 * 7 / 8 * 1.25e8 / 50e9)
    assert efficiency(0, 0, 10**9, 8, NVLINK, images=200) == 1


def test_the_table_of_the_documents_is_not_stale():
    assert table(RECORD) in (ROOT / "docs" / "devices.md").read_text()


@pytest.mark.parametrize("row", RECORD["counted"], ids=str)
def test_the_recorded_counts_are_those_of_the_networks(row):
    """Gradients travel once, in single precision; statistics of the whole batch take three sums a layer."""
    layers = sum(map(len, NETWORKS[row["network"]]))
    parameters = {"cnn6": 1_172_004, "cnn10": 7_689_252}[row["network"]]
    assert row["kinds"] == ["all-reduce"]
    assert row["collectives"] == 2 + (3 * layers if row["norm_sync"] == "global" else 0)
    assert parameters <= row["bytes_per_device"] / 4 <= parameters * 1.02
    paper = efficiencies(row["collectives"], row["bytes_per_device"], row["training_flops_per_image"])
    assert row["efficiency_on_paper"] == paper
    assert row["memory_bytes_per_device"]["parameters_and_momentum"] // 4 in range(2 * parameters, 2 * parameters + 5)
