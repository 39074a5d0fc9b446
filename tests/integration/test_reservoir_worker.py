"""A worker from Kafka to Kafka fills the strata, and sends the stamps that labels wait for."""

import contextlib

import numpy as np
from stream_vae import assembly
from stream_vae.labels import Label, Provenance
from stream_vae.sky.packets import simulate_packets

from deployment import deploy
from flow import total, work

ALERTS = 40


def test_a_worker_fills_every_stratum_and_anchors_what_was_labelled_before(embedded_kafka, redis_server, tmp_path):
    # Uniform and the others have room for few, so that most stamps are not wanted but for their label.
    section = {"url": redis_server.url, "capacity": 2, "recent_capacity": 3, "rare_capacity": 2, "anchor_capacity": 20}
    deployment = deploy(embedded_kafka, tmp_path, survey="ztf", reservoir=section)
    packets = list(simulate_packets(ALERTS, shape="ztf", seed=7))
    with contextlib.closing(assembly.reservoir_of(deployment.settings)) as reservoir:
        reservoir.clear()
        labelled = [str(each.candid) for each in packets[10:18]]
        for alert_id in labelled:
            assert reservoir.label(Label(alert_id, 1, Provenance.HUMAN)) == "waiting"
        deployment.publish(each.packet for each in packets)
        metrics = work(deployment.settings)
        sample = reservoir.draw(None, np.random.default_rng(0), strata=("anchors",))
        stats = reservoir.stats()
        assert sorted(sample.alert_ids) == sorted(labelled)
        assert set(sample.labels.tolist()) == {1}
        assert set(sample.bands) <= {"g", "r", "i"}
        assert (sample.time_s > 1.7e9).all()
        assert [stratum.stamps for stratum in stats.strata][:2] == [2, 3]
        assert stats.waiting == 0
        assert total(metrics, "stream_vae_alerts_published_total") == ALERTS
        assert total(metrics, "stream_vae_reservoir_circuit_open") == 0
        reservoir.clear()
