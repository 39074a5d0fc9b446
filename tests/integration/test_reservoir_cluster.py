"""The reservoir in a Redis Cluster of one node."""

import contextlib
import uuid

import numpy as np
import pytest
from stream_vae import surveys
from stream_vae.errors import ConfigError
from stream_vae.labels import Label, Provenance
from stream_vae.metrics import Metrics
from stream_vae.model.release import Preprocessing
from stream_vae.redis_client import answering
from stream_vae.reservoir import Reservoir, address, connect
from stream_vae.runtime.offering import Offering
from stream_vae.sampling import Capacities

from reservoirs import named, observed
from servers import MissingServiceError, redis_cluster

PREPROCESSING = Preprocessing(stamp_size=5)


@pytest.fixture(scope="module")
def url():
    try:
        with redis_cluster() as started:
            yield started
    except MissingServiceError as error:
        pytest.skip(str(error))


def opened(url, survey):
    return Reservoir(connect(url, timeout_s=5.0), survey, where=address(url))


def test_workers_fill_it_labels_stay_and_all_of_it_is_read_and_cleared(url):
    survey = f"test-{uuid.uuid4().hex[:8]}"
    metrics = Metrics(survey)
    offering = Offering(
        opened(url, survey), PREPROCESSING, Capacities(100, 50, 50, 10, 10), metrics, profile=surveys.load("ztf")
    )
    ids = [str(number) for number in range(300)]
    offering.observe(*observed(named(ids), np.ones((300, 5, 5, 1), np.float32), novelty=0.5))
    assert offering.flush(20)
    offering.close()
    with contextlib.closing(opened(url, survey)) as reservoir:
        stats = reservoir.stats()
        assert [stratum.stamps for stratum in stats.strata] == [100, 50, 50, 0, 0]
        sample = reservoir.draw(None, np.random.default_rng(0))
        assert len(sample.alert_ids) == stats.stamps
        assert reservoir.label(Label(sample.alert_ids[0], 1, Provenance.HUMAN)) == "anchored"
        assert len(reservoir.labels()) == 1
        assert reservoir.clear() == stats.stamps
        assert reservoir.stats().stamps == 0


def test_a_cluster_that_is_not_there_is_an_error_when_it_is_asked_and_not_before():
    reservoir = opened("redis+cluster://user:secret@127.0.0.1:1", "ztf")
    with pytest.raises(ConfigError, match="No Redis answers at") as caught:
        reservoir.stats()
    assert "secret" not in str(caught.value)
    reservoir.close()


def test_a_node_that_sends_us_elsewhere_asks_for_the_clusters_scheme():
    from redis.exceptions import MovedError

    with pytest.raises(ConfigError, match=r"node of a cluster.*redis\+cluster://"), answering("redis://here"):
        raise MovedError("1234 127.0.0.1:7001")
