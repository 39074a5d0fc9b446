"""What a replay sends: good packets, some twice, some spoiled."""

from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.replay import Sent, spoiled


def test_a_share_is_spoiled_with_the_name_of_the_fault_and_a_share_sent_twice() -> None:
    good = [Sent(each.key, each.packet) for each in simulate_packets(200, shape="candidate", seed=1)]
    sent = list(spoiled(good, duplicates=0.1, corrupt=0.1, seed=0))
    bad = [each for each in sent if each.fault is not None]
    assert 5 < len(bad) < 40
    assert all(each.packet not in {packet for _, packet, _ in good} for each in bad)
    assert 5 < len(sent) - len(good) < 40
    assert {each.key for each in sent} == {each.key for each in good}
