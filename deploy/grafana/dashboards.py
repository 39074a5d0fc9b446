"""The Grafana dashboards, as a program: `python deploy/grafana/dashboards.py` writes dashboards/*.json anew.

Every panel is one call: what it shows, why one looks at it, its unit, and its PromQL. All sum over workers, so that one
process, a fleet on one page and many pods look alike; where workers are told apart the panel says so.
"""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from panels import (
    BLUE,
    GREEN,
    OURS,
    RED,
    WHO,
    YELLOW,
    Query,
    S,
    grown,
    heat,
    lines,
    number,
    page,
    rate,
    rows,
    states,
    total,
)

FOLDER = Path(__file__).parent / "dashboards"
ALERTS = 'ALERTS{alertname=~"StreamVae.*", alertstate="firing", survey=~"($survey)?"}'


def latency(share: float) -> str:
    """The latency that a share of the alerts does not exceed."""
    return f"histogram_quantile({share}, {rate('stream_vae_latency_seconds_bucket', 'le')})"


DEAD = f"{rate('stream_vae_alerts_dead_lettered_total')} / ({rate('stream_vae_alerts_consumed_total')} > 0)"
AGE = f"time() - min(stream_vae_release_made_timestamp_seconds{{{S}}})"
WHERE = "topic, partition"
BOOKS = " - ".join(
    total(f"stream_vae_alerts_{fate}_total", WHERE) for fate in ("consumed", "published", "dead_lettered", "filtered")
)
OUTCOME = f"max by (gate) (stream_vae_gate_outcome{{{S}}})"
OTHERS = 'band="all", figure=~"latent_mean|masked|unscoreable"'
ALONE = '{worker=~"(supervisor)?"}'
YES_NO = {"1": ("yes", GREEN), "0": ("no", RED)}


# A panel is a paragraph: one argument a line would be twice as long, and not read.
# fmt: off
def overview() -> model.Dashboard:
    """What to look at first."""
    now = [
        number("Alerts that fire", "Of the rules in deploy/prometheus/rules.yaml; listed below.", "none",
               f"count({ALERTS}) or vector(0)", (None, GREEN), (1, RED)),
        number("Workers that consume", "Ready: partitions are assigned. None for five minutes is an incident.", "none",
               f"{total('stream_vae_ready')} or vector(0)", (None, RED), (1, GREEN)),
        number("Lag", "Messages that wait in the input topics.", "short", total("stream_vae_lag_messages"),
               (None, GREEN), (1000, YELLOW), (100_000, RED)),
        number("Alerts in", "Read and settled.", "cps", rate("stream_vae_alerts_consumed_total")),
        number("Latency, 99 of 100", "From Kafka's time of the input to the acknowledgement of the output.", "s",
               latency(0.99), (None, GREEN), (1, YELLOW), (10, RED)),
        number("Dead letters", "Share of the messages that cannot be decoded.", "percentunit", DEAD, (None, GREEN),
               (0.001, YELLOW), (0.01, RED)),
        number("Books", "Consumed less published, dead-lettered and filtered, of all partitions. Must be 0.", "none",
               f"sum(abs({BOOKS}))", (None, GREEN), (1, RED)),
        number("Age of the release", "How long ago the release that scores was made.", "s", AGE, (None, GREEN),
               (14 * 86_400, YELLOW), (30 * 86_400, RED)),
    ]
    return page(
        "overview",
        "overview",
        "Are alerts coming through, all of them, in time?",
        {
            "": now,
            "State": [
                rows("Alerts that fire", "Each has a section in deploy/README.md, Incidents.", (ALERTS, ""),
                     columns={"alertname": "alert",
                              "severity": "severity",
                              "job": "job",
                              "instance": "instance",
                              "topic": "topic",
                              "figure": "figure"}),
                states("Up and ready", "Up: the metrics page answers. Ready: the worker consumes.", YES_NO,
                       (f"up and {OURS}", "up {{job}} {{instance}}"),
                       (f"max by (instance, worker) (stream_vae_ready{{{S}}})", f"ready {WHO}")),
            ],
            "Flow": [
                lines("Alerts in and out", "In is the sum of the three outs, and counted when a batch is settled.",
                      "cps", (rate("stream_vae_alerts_consumed_total"), "in"),
                      (rate("stream_vae_alerts_published_total"), "published"),
                      (rate("stream_vae_alerts_dead_lettered_total"), "dead-lettered"),
                      (rate("stream_vae_alerts_filtered_total"), "filtered")),
                lines("Lag", "Messages that wait. A burst that goes away within minutes is a visit of the telescope.",
                      "short", (total("stream_vae_lag_messages"), "all")),
                lines("Latency", "From Kafka's time of the input to the acknowledgement of the output.", "s",
                      (latency(0.5), "1 of 2"), (latency(0.9), "9 of 10"), (latency(0.99), "99 of 100"), limit=10),
                lines("Lag by partition", "One that grows alone: its worker hangs, or its key has too much.", "short",
                      (total("stream_vae_lag_messages", WHERE), "{{topic}}/{{partition}}")),
            ],
            "What went wrong": [
                lines("Dead letters by reason", "`stream-vae dlq ls` shows examples.", "cps",
                      (rate("stream_vae_alerts_rejected_total", "stage, reason"), "{{reason}} ({{stage}})"),
                      stacked=True),
                lines("Unscored alerts by flag", "Published without a score. An alert may have several flags.", "cps",
                      (rate("stream_vae_alerts_unscored_total", "flag"), "{{flag}}"), stacked=True),
                lines("Books by partition",
                      "Consumed less published, dead-lettered, filtered: 0, but for a scrape in the middle of a batch.",
                      "none", (BOOKS, "{{topic}}/{{partition}}"), least=None),
                lines("Offset gaps, rebalances, failed commits",
                      "Gaps: alerts that Kafka deleted before we read them.", "none",
                      (grown("stream_vae_offset_gaps_total", "topic"), "gaps in {{topic}}"),
                      (grown("stream_vae_rebalances_total", "event"), "partitions {{event}}"),
                      (grown("stream_vae_commits_total", "outcome", ', outcome!="succeeded"'), "commits {{outcome}}"),
                      bars=True),
            ],
        },
    )


def an_alert(numerator: str, label: str) -> str:
    """What comes on one alert."""
    return f"{numerator} / ignoring ({label}) group_left () ({rate('stream_vae_alerts_consumed_total')} > 0)"


def psi(of: str) -> Query:
    """A figure of drift, by filter."""
    return f'max by (band) (stream_vae_drift_psi{{{S}, figure="{of}"}})', "{{band}}"


def over(metric: str, bound: str) -> str:
    """The share of a histogram that is over one of its bounds."""
    below = rate(f"{metric}_bucket", more=f', le="{bound}"')
    return f"1 - {below} / {rate(f'{metric}_count')}"


def figure(release: str, more: str = "") -> str:
    """What the gates of the last retraining found of one of both releases."""
    return f'max by (gate) (stream_vae_gate_figure{{{S}, release="{release}"{more}}})'


def science() -> model.Dashboard:
    """What the model says of the stream."""
    challenged = f"({rate('stream_vae_canary_alerts_total')} + {rate('stream_vae_shadow_alerts_total')})"
    difference = rate("stream_vae_shadow_score_difference_bucket", "le")
    return page(
        "model",
        "model",
        "Which release scores, and does the stream still look as it knows it?",
        {
            "": [
                number("Release", "The one that scores.", "none",
                       f"count by (release) (stream_vae_release_info{{{S}}})", wide=8, legend="{{release}}"),
                number("Made", "How long ago.", "s", AGE, (None, GREEN), (14 * 86_400, YELLOW), (30 * 86_400, RED),
                       wide=4),
                number("Refused by", "Workers that cannot use the store's current release.", "none",
                       total("stream_vae_release_refused"), (None, GREEN), (1, RED), wide=4),
                number("Figures that drift", "Over their limit in the last window of some worker.", "none",
                       f"sum(max by (figure) (stream_vae_drift_alarm{{{S}}})) or vector(0)", (None, GREEN), (1, RED),
                       wide=4),
                number("Scored by a challenger", "Share of the alerts that a release on trial scores.", "percentunit",
                       f"{challenged} / {rate('stream_vae_alerts_published_total')}", wide=4),
            ],
            "Release": [
                rows("Releases that score", "More than one for minutes: some workers have not taken the new one.",
                     (f"count by (release, latent_space) (stream_vae_release_info{{{S}}})", ""),
                     columns={"release": "release", "latent_space": "latent space", "Value": "workers"}),
                lines("Swaps and trials", "What workers did with releases that became current, or were put on trial.",
                      "none", (grown("stream_vae_release_swaps_total", "outcome"), "swap {{outcome}}"),
                      (grown("stream_vae_challenger_trials_total", "outcome"), "trial {{outcome}}"), bars=True),
            ],
            "Scores": [
                heat("Scores", "Alerts by real_score: 1 is real.", "stream_vae_real_score_bucket"),
                lines("Share that is real", "A step that no sky explains is a change of camera, reduction or release.",
                      "percentunit", (over("stream_vae_real_score", "0.5"), "over 0.5"),
                      (over("stream_vae_real_score", "0.9"), "over 0.9")),
                heat("Novelty", "Alerts by novelty: how rare the like was among what the release knows.",
                     "stream_vae_novelty_bucket"),
                lines("Share that is novel", "By the release's own stamps 1% is over 0.99.", "percentunit",
                      (over("stream_vae_novelty", "0.99"), "over 0.99"),
                      (over("stream_vae_novelty", "0.999"), "over 0.999")),
            ],
            "Drift: population stability index of the last window against the release, by filter": [
                lines("Codes: worst unit, by filter", "Over drift.psi_limit (0.4): alarm.", "none", psi("latent"),
                      limit=0.4),
                lines("Scores, by filter", "Over drift.psi_limit (0.4): alarm.", "none", psi("real_score"), limit=0.4),
                lines("Squared error of reconstructions, by filter", "Over 0.4 of drift.psi_limit: alarm.", "none",
                      psi("squared_error"), limit=0.16),
                lines("Other figures, all filters",
                      "latent_mean: alarm over 0.3 of the limit; masked, unscoreable: a quarter.", "none",
                      (f"max by (figure) (stream_vae_drift_psi{{{S}, {OTHERS}}})", "{{figure}}"), limit=0.1),
                states("Drift alarms", "Over the limit in the last window of some worker.",
                       {"0": ("as known", GREEN), "1": ("drift", RED)},
                       (f"max by (figure) (stream_vae_drift_alarm{{{S}}})", "{{figure}}")),
                lines("Quality flags", "Share of the alerts, scored or not.", "percentunit",
                      (an_alert(rate("stream_vae_alerts_flagged_total", "flag"), "flag"), "{{flag}}")),
            ],
            "On trial: shadow and canary": [
                lines("Alerts that the challenger scores",
                      "Canary: it publishes them. Shadow: nobody sees them. Skipped: it had no time.", "cps",
                      (rate("stream_vae_canary_alerts_total"), "canary"),
                      (rate("stream_vae_shadow_alerts_total"), "shadow"),
                      (rate("stream_vae_shadow_skipped_alerts_total"), "skipped")),
                lines("Difference of its scores", "Of the shadow's from those that were published.", "none",
                      (f"histogram_quantile(0.5, {difference})", "1 of 2"),
                      (f"histogram_quantile(0.99, {difference})", "99 of 100"),
                      (f"{rate('stream_vae_shadow_disagreements_total')} / {rate('stream_vae_shadow_alerts_total')}",
                       "share on the other side of 0.5")),
            ],
            "Calibration": [
                lines("Calibration error (ECE)",
                      "Of the newest retrained release and the one that it was to replace, on stamps with labels that "
                      "no training saw. Absent: fewer than 100 labels of each class.", "none",
                      (f'max by (gate, release) (stream_vae_gate_figure{{{S}, gate=~"calibration.*"}})',
                       "{{gate}}: {{release}}"), wide=24)
            ],
        },
    )


def learning() -> model.Dashboard:
    """The loop that keeps the model current."""
    passed = {"1": ("passed", GREEN), "0": ("undecided", YELLOW), "-1": ("failed", RED)}
    return page(
        "learning",
        "learning loop",
        "Does the model learn from the stream, and is what it learns good?",
        {
            "": [
                number("Trainer", "The process of `stream-vae retrain`.", "none",
                       f"max(stream_vae_retraining_running{{{S}}})", (None, BLUE), wide=3,
                       words={"0": ("waits", BLUE), "1": ("retrains", GREEN)}),
                number("Last retraining", "How long ago its release was made.", "s",
                       f"time() - max(stream_vae_retraining_last_timestamp_seconds{{{S}}})"),
                number("Alerts since", "About: as the reservoir counts them.", "short",
                       f"max(stream_vae_retraining_new_alerts{{{S}}})"),
                number("Gates that failed", "Of the last retraining.", "none", f"count({OUTCOME} < 0) or vector(0)",
                       (None, GREEN), (1, YELLOW)),
                number("Releases taken back", "In the time that is shown, because they did harm.", "none",
                       f"round(sum(increase(stream_vae_rollbacks_total{{{S}}}[$__range])))", (None, GREEN), (1, RED)),
                number("Stamps in the reservoir", "By the workers' last answer from Redis.", "short",
                       f"max(stream_vae_reservoir_stamps{{{S}}})"),
                number("Redis", "Whether workers leave it alone after a failure.", "none",
                       f"max(stream_vae_reservoir_circuit_open{{{S}}})", (None, GREEN), (1, RED),
                       words={"0": ("answers", GREEN), "1": ("away", RED)}),
                number("Labels that conflict", "Alerts that some call real and others bogus.", "none",
                       f"max(stream_vae_label_conflicts{{{S}}})", (None, GREEN), (1, YELLOW)),
            ],
            "Reservoir": [
                lines("Stamps by stratum", "Each has a capacity of its own ([reservoir] in the settings).", "short",
                      (f"max by (stratum) (stream_vae_reservoir_stratum_stamps{{{S}}})", "{{stratum}}")),
                lines("Offered, entered, dropped",
                      "Offered: every scoreable stamp. Dropped: could have entered, and was not sent or taken.", "cps",
                      (rate("stream_vae_reservoir_offered_total"), "offered"),
                      (rate("stream_vae_reservoir_entered_total"), "entered"),
                      (rate("stream_vae_reservoir_dropped_total", "reason"), "dropped: {{reason}}")),
            ],
            "Retraining": [
                lines("Retrainings",
                      "Those that made a release, by what became of it; those that made none, by error.", "none",
                      (grown("stream_vae_retrainings_total", "trigger, fate"), "{{fate}} (by {{trigger}})"),
                      (grown("stream_vae_retraining_failures_total", "error"), "failed: {{error}}"), bars=True),
                lines("Trials and rollbacks",
                      "Trials that a retraining began, by their end; releases that were taken back.", "none",
                      (grown("stream_vae_trials_total", "end"), "trial {{end}}"),
                      (grown("stream_vae_rollbacks_total"), "taken back"), bars=True),
                rows("Gates of the last retraining",
                     "The new release against the one that it was to replace, on stamps that no training saw. "
                     "`stream-vae releases show` has intervals and limits.", (figure("challenger"), ""),
                     (figure("incumbent"), ""), (OUTCOME, ""),
                     columns={"gate": "gate", "Value #A": "new", "Value #B": "old", "Value #C": "outcome"},
                     words=passed, wide=24, height=12),
                states("Gates over time", "One bar a gate: it changes with each retraining.", passed,
                       (OUTCOME, "{{gate}}")),
                lines("AUC, missed, calibration over time", "Of the new releases, where labels exist.", "none",
                      (figure("challenger", ', gate=~"AUC.*|missed.*|calibration.*"'), "{{gate}}")),
            ],
            "Labels": [
                lines("Labels read", "By what became of them; malformed and full ones are dead letters.", "none",
                      (grown("stream_vae_labels_total", "outcome"), "{{outcome}}"), bars=True),
                lines("Labels that wait, labels that conflict",
                      "Waiting: labelled alerts that no worker has offered yet.", "short",
                      (f"max(stream_vae_reservoir_waiting_alerts{{{S}}})", "waiting"),
                      (f"max(stream_vae_label_conflicts{{{S}}})", "in conflict")),
            ],
            "Trainer": [
                lines("Looks that failed, reservoirs found empty",
                      "Store, Redis or the labels' topic did not answer the trainer; Redis lost its memory.", "none",
                      (grown("stream_vae_trainer_looks_failed_total", "what"), "{{what}}"),
                      (grown("stream_vae_reservoir_lost_total"), "found empty"), bars=True),
                lines("Alerts since the last retraining", "retrain.after_alerts asks for the next at its number.",
                      "short", (f"max(stream_vae_retraining_new_alerts{{{S}}})", "alerts")),
            ],
        },
    )


def machines() -> model.Dashboard:
    """What it runs on."""
    encoded = rate("stream_vae_encoder_batch_stamps_count")
    return page(
        "infrastructure",
        "infrastructure",
        "Where do time and memory go, and what is waited for?",
        {
            "Workers": [
                lines("CPU by stage", "Of the workers' own threads; 100% is one core.", "percentunit",
                      (rate("stream_vae_stage_cpu_seconds_total", "stage"), "{{stage}}"), stacked=True),
                lines("Time by stage and alert", "Wall clock. Far above its CPU: the stage waits.", "s",
                      (an_alert(rate("stream_vae_stage_seconds_total", "stage"), "stage"), "{{stage}}"), stacked=True),
                lines("CPU by process", "With the threads of librdkafka; 100% is one core.", "percentunit",
                      (f"rate(process_cpu_seconds_total[$__rate_interval]) and {OURS}", WHO)),
                lines("Memory", "Resident. A worker needs about 480 MB, and stays there.", "bytes",
                      (f"process_resident_memory_bytes and {OURS}", WHO)),
                lines("Restarts", "A fleet's slots; processes that began anew.", "none",
                      (grown("stream_vae_fleet_restarts_total", "worker"), "slot {{worker}}"),
                      (f"changes(process_start_time_seconds{ALONE}[$__rate_interval]) and {OURS}",
                       "process {{instance}}"), bars=True),
                lines("Workers and partitions", "Wanted and alive: of a fleet.", "none",
                      (total("stream_vae_fleet_workers_wanted"), "wanted"),
                      (total("stream_vae_fleet_workers_alive"), "alive"), (total("stream_vae_ready"), "consume"),
                      (total("stream_vae_assigned_partitions", "instance, worker"), f"partitions of {WHO}")),
                lines("Alerts in a batch",
                      "Small batches at a high rate: batch.max_wait_s is short, or fetches are small.", "none",
                      (f"{rate('stream_vae_batch_alerts_sum')} / {rate('stream_vae_batch_alerts_count')}", "mean"),
                      (total("stream_vae_alerts_in_flight"), "not yet acknowledged")),
                lines("Bytes", "Of messages, uncompressed.", "binBps", (rate("stream_vae_input_bytes_total"), "in"),
                      (rate("stream_vae_output_bytes_total"), "out")),
            ],
            "Kafka's client (librdkafka)": [
                lines("Round trip to brokers", "Mean. Fetches wait for messages and are left out by librdkafka.", "s",
                      (f"max by (client, broker) (stream_vae_broker_rtt_seconds{{{S}}})", "{{client}} {{broker}}")),
                lines("Errors", "By librdkafka's names. Some at a broker's restart are in order.", "none",
                      (grown("stream_vae_kafka_errors_total", "client, code"), "{{client}} {{code}}"), bars=True),
                lines("Messages to be produced",
                      "Waiting in the producers. Full all the time: brokers do not keep up.", "short",
                      (total("stream_vae_producer_queue_messages", "instance, worker"), WHO)),
                lines("Bytes fetched ahead", "Waiting in the consumers. Full all the time: workers do not keep up.",
                      "bytes", (total("stream_vae_consumer_queue_bytes", "instance, worker"), WHO)),
            ],
            "Redis": [
                lines("Stamps dropped", "Could have entered the reservoir; alerts went on.", "cps",
                      (rate("stream_vae_reservoir_dropped_total", "reason"), "{{reason}}"), stacked=True),
                states("Redis, as workers find it", "Away: left alone for 5 s after a failure.",
                       {"0": ("answers", GREEN), "1": ("away", RED)},
                       (f"max by (instance, worker) (stream_vae_reservoir_circuit_open{{{S}}})", WHO)),
                lines("Reports to Redis", "Of what each release does, for the trainer.", "cps",
                      (rate("stream_vae_vitals_posts_total", "outcome"), "{{outcome}}"), wide=24),
            ],
            "Encoder pool (encoder.actors)": [
                lines("Stamps that wait", "All the time more than a batch: another actor would help.", "short",
                      (total("stream_vae_encoder_waiting_stamps", "worker"), "{{worker}}"), wide=8),
                lines("Stamps in a batch", "Mean. Few: the pool has time to spare.", "none",
                      (f"{rate('stream_vae_encoder_batch_stamps_sum')} / {encoded}", "mean"), wide=8),
                lines("Busy", "Share of the time that an actor encodes.", "percentunit",
                      (rate("stream_vae_encoder_seconds_total", "worker"), "{{worker}}"), wide=8),
            ],
            "Ray's nodes (where the exporter of ray[default] is scraped)": [
                lines("CPU of the nodes", "Whole node.", "percent", ("ray_node_cpu_utilization", "{{ip}}"), wide=8),
                lines("Memory of the nodes", "Of the whole node.", "bytes", ("ray_node_mem_used", "{{ip}} used"),
                      ("ray_node_mem_total", "{{ip}} all"), wide=8),
                lines("Object store", "Stamps on their way to the encoder pool; spills where it is full.", "bytes",
                      ("ray_object_store_used_memory", "{{ip}} {{NodeAddress}} used"), wide=8),
            ],
        },
    )


# fmt: on


DASHBOARDS = {"overview": overview, "model": science, "learning": learning, "infrastructure": machines}


def written(name: str) -> str:
    """Give a dashboard as its file has it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(DASHBOARDS[name]()) + "\n"


def main() -> int:
    """Write all files."""
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(written(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
