"""The demonstration, as a newcomer runs it but for the number of alerts."""

import json

import pytest
from matplotlib.image import imread

from flow import running

ALERTS = 400


@pytest.mark.slow  # it trains a model, for half a minute
@pytest.mark.timeout(300)
def test_the_demonstration_balances_and_draws_its_picture(tmp_path):
    pytest.importorskip("tensorflow", reason="the demonstration trains: pip install 'stream-vae[demo]'")
    arguments = ["demo", "--alerts", ALERTS, "--out", tmp_path / "demo", "--corrupt", 0.05, "--json"]
    with running(tmp_path / "log", "--quiet", *arguments) as process:
        assert process.wait(280) == 0, process.text
    answer = json.loads(process.text[process.text.index("\n{") if "\n{" in process.text else 0 :])
    assert answer["balanced"] is True
    assert answer["surprises"] == []
    assert answer["sent"] == ALERTS + answer["duplicates"]
    assert answer["sent"] == answer["published"] + answer["dead_lettered"]
    assert answer["dead_lettered"] == sum(answer["dead_letters"].values()) > 0
    assert answer["published"] == answer["scored"] + answer["unscored"]
    assert answer["auc"] > 0.8
    height, width, _ = imread(tmp_path / "demo" / "demo.png").shape
    assert min(height, width) > 400
    with running(
        tmp_path / "verify", "releases", "verify", answer["release"], "--store", tmp_path / "demo/releases"
    ) as p:
        assert p.wait() == 0, p.text
