"""The rows of the chaos suite that find most, in short; `make chaos` plays them all, with real alerts."""

import pytest

from chaos.faults import KillBroker, Stop
from chaos.load import simulated_alerts
from chaos.rows import Amount, Row, play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AMOUNT = Amount(seconds=5, a_second=100)
SMALL = {"batch": {"max_alerts": 16, "max_wait_s": 0.05}}  # many batches: many places to be interrupted at


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    return simulated_alerts("candidate", 100)


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        (Row("a worker stands still past its session", (Stop(),), spoiled=True, sections=SMALL), "exactly_once"),
        (Row("the broker is killed", (KillBroker(),), workers=1, may_exit=True, sections=SMALL), "at_least_once"),
        (Row("the broker is killed", (KillBroker(),), workers=1, sections=SMALL), "exactly_once"),
    ],
    ids=lambda value: value.name.replace(" ", "-") if isinstance(value, Row) else value,
)
def test_nothing_is_lost_and_what_is_promised_once_comes_once_when(row, mode, mortal_broker, packets, tmp_path):
    verdict = play(row, mode, mortal_broker, packets, tmp_path, amount=AMOUNT, survey="candidate")
    assert verdict.problems == []
    assert verdict.lost == 0
    assert verdict.messages > 100
    assert verdict.faults >= 1
    if mode == "exactly_once":
        assert verdict.duplicated == 0
