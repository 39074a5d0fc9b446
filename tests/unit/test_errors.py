"""Errors keep what they say on the way from one process to another, and end the command as documented."""

import copy
import pickle

import pytest
from stream_vae.cutout import CutoutError
from stream_vae.errors import ConfigError, FatalError, Reason, RejectedAlertError, RetriableError, StreamVaeError
from stream_vae.quality import Quality

KINDS = [StreamVaeError, ConfigError, RetriableError, FatalError]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301
def test_an_error_survives_pickling_with_its_remedy(kind: type[StreamVaeError], again) -> None:
    error = again(kind("it broke.", remedy="Mend it."))
    assert type(error) is kind
    assert str(error) == "it broke. Mend it."
    assert error.remedy == "Mend it."


@pytest.mark.parametrize("reason", list(Reason))
def test_a_rejection_survives_pickling_with_its_reason(reason: Reason) -> None:
    error = pickle.loads(pickle.dumps(RejectedAlertError("bad", reason=reason, remedy="none")))  # noqa: S301
    assert (str(error), error.reason, error.remedy) == ("bad none", reason, "none")


def test_a_cutouts_error_survives_pickling_with_its_flag() -> None:
    error = pickle.loads(pickle.dumps(CutoutError("bad", quality=Quality.OVERSIZED_CUTOUT)))  # noqa: S301
    assert (str(error), error.quality) == ("bad", Quality.OVERSIZED_CUTOUT)


@pytest.mark.parametrize("kind", [*KINDS, RejectedAlertError, CutoutError])
def test_every_argument_has_a_default(kind: type[Exception]) -> None:
    assert str(kind()) == ""


def test_an_error_without_a_remedy_ends_with_what_happened() -> None:
    assert str(ConfigError("it broke.")) == "it broke."


def test_the_exit_codes_are_those_that_the_command_documents() -> None:
    from stream_vae import cli

    assert cli.__doc__ is not None
    codes = {
        ConfigError: (2, "wrong"),
        RetriableError: (3, "outside"),
        FatalError: (4, "go on"),
        StreamVaeError: (1, "no"),
    }
    for kind, (code, words) in codes.items():
        assert kind.exit_code == code
        text = " ".join(cli.__doc__.split()).partition(f"{code} ")[2]
        assert words in text.split(";")[0]


def test_reasons_are_words_for_labels_and_headers() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert reason.value.replace("_", "").isalpha()
