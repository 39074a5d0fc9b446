"""Registries: the documented HTTP interface as a server speaks it, in memory, and a folder."""

import threading

import pytest
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import Limits
from stream_vae.avro.registry import CONTENT_TYPE, FolderRegistry, HttpRegistry, open_registry
from stream_vae.avro.schema import WriterSchema
from stream_vae.errors import ConfigError, Reason, RejectedAlertError, RetriableError

from schema_registry import Registry

SCHEMA = '{"type":"record","name":"R","fields":[{"name":"x","type":"int"}]}'
OTHER = SCHEMA.replace("int", "long")


@pytest.fixture
def server():
    with Registry() as registry:
        thread = threading.Thread(target=registry.serve_forever, args=(0.01,))
        thread.start()
        yield registry
        registry.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    with HttpRegistry(server.url) as registry:
        yield registry


# --- over HTTP


def test_a_schema_is_fetched_once_by_its_id(server, client):
    server.schemas[703] = SCHEMA
    assert client.get(703) == client.get(703) == SCHEMA
    assert [asked[:2] for asked in server.asked] == [("GET", "/schemas/ids/703")]


def test_a_schema_is_registered_once_under_its_subject(server, client):
    first = client.register("alerts/scored-value", SCHEMA)
    assert client.register("alerts/scored-value", SCHEMA) == first
    assert client.get(first) == SCHEMA
    assert server.asked[0] == ("POST", "/subjects/alerts%2Fscored-value/versions", {"schema": SCHEMA}, CONTENT_TYPE)
    assert len(server.asked) == 2
    assert client.register("alerts/scored-value", OTHER) != first


def test_an_unknown_id_is_rejected_and_asked_for_again_only_after_a_while(server):
    now = [100.0]
    with HttpRegistry(server.url, clock=lambda: now[0]) as client:
        for _ in range(3):
            with pytest.raises(RejectedAlertError) as caught:
                client.get(5)
            assert caught.value.reason is Reason.SCHEMA
        assert len(server.asked) == 1
        server.schemas[5] = SCHEMA
        now[0] += 11
        assert client.get(5) == SCHEMA


def test_a_wrong_path_to_the_registry_is_no_fault_of_the_alerts(server, client):
    server.instead = (404, b"<html>no such page</html>")
    with pytest.raises(RetriableError, match="404"):
        client.get(5)


@pytest.mark.parametrize(
    "instead",
    [
        (500, {"error_code": 50001, "message": "Error in the backend datastore"}),
        (503, b"<html>later</html>"),
        (429, {"error_code": 429, "message": "Too many"}),
        (200, b"<html>a proxy says hello</html>"),
        (200, b"[1, 2]"),
        (200, {"something": "else"}),
        (200, {"schema": 17}),
        (200, b'{"schema": "' + b"x" * (5 << 20) + b'"}'),
    ],
)
def test_a_registry_that_does_not_make_sense_is_asked_again_later(server, client, instead):
    server.instead = instead
    for ask in (lambda: client.get(1), lambda: client.register("s", SCHEMA)):
        with pytest.raises(RetriableError):
            ask()
    server.instead = None
    server.schemas[1] = SCHEMA
    assert client.get(1) == SCHEMA


def test_a_registry_that_is_not_there_is_asked_again_later(server):
    server.server_close()
    with HttpRegistry(server.url, timeout_s=1) as client, pytest.raises(RetriableError) as caught:
        client.get(1)
    assert caught.value.remedy


def test_a_registry_that_hangs_is_given_up_soon():
    with (
        Registry() as silent,  # it listens and never answers
        HttpRegistry(silent.url, timeout_s=0.1) as client,
        pytest.raises(RetriableError, match="timed out"),
    ):
        client.get(1)


def test_the_second_registry_is_asked_where_the_first_fails(server):
    server.schemas[1] = SCHEMA
    with HttpRegistry(f"http://127.0.0.1:9, {server.url}", timeout_s=1) as client:
        assert client.get(1) == SCHEMA


@pytest.mark.parametrize("place", ["argument", "url"])
def test_credentials_are_sent(server, place):
    server.credentials = "anna:s3 cret"
    server.schemas[1] = SCHEMA
    url = server.url if place == "argument" else server.url.replace("://", "://anna:s3%20cret@")
    with HttpRegistry(url, ("anna", "s3 cret") if place == "argument" else None) as client:
        assert client.get(1) == SCHEMA


def test_wrong_credentials_are_a_matter_of_settings_and_are_not_told(server):
    server.credentials = "anna:secret"
    with HttpRegistry(server.url, ("anna", "guess")) as client:
        for ask in (lambda: client.get(1), lambda: client.register("s", SCHEMA)):
            with pytest.raises(ConfigError, match="401") as caught:
                ask()
            assert "guess" not in str(caught.value)


def test_an_incompatible_output_schema_is_a_matter_of_settings(server, client):
    server.instead = (409, {"error_code": 409, "message": "Schema being registered is incompatible"})
    with pytest.raises(ConfigError, match="compatibility to NONE"):
        client.register("s", SCHEMA)


def test_an_invalid_output_schema_rejects_the_alert(server, client):
    server.instead = (422, {"error_code": 42201, "message": "Invalid schema"})
    with pytest.raises(RejectedAlertError) as caught:
        client.register("s", SCHEMA)
    assert caught.value.reason is Reason.SCHEMA


@pytest.mark.parametrize("extra", [{"schemaType": "PROTOBUF"}, {"references": [{"name": "a", "subject": "b"}]}])
def test_a_schema_that_is_not_plain_avro_is_rejected(server, client, extra):
    server.instead = (200, {"schema": SCHEMA, **extra})
    with pytest.raises(RejectedAlertError) as caught:
        client.get(1)
    assert caught.value.reason is Reason.SCHEMA


def test_what_is_kept_is_bounded(server):
    server.schemas = dict.fromkeys(range(1, 10), SCHEMA)
    with HttpRegistry(server.url, limits=Limits(schema_cache_entries=2)) as client:
        for n in (1, 2, 3, 1):
            client.get(n)
    assert len(server.asked) == 4


def test_closing_twice_is_fine(client):
    client.close()
    client.close()


def test_a_reader_asks_the_registry_once_and_goes_on_without_it(server, client):
    server.schemas[900] = SCHEMA
    reader = FrameReader(schemas=client)
    packet = b"\x00\x00\x00\x03\x84\x04"
    assert reader.open(packet).writer == WriterSchema.parse(SCHEMA)
    server.instead = (500, {})
    assert reader.open(packet).writer.decode(b"\x04") == {"x": 2}
    with pytest.raises(RetriableError):
        reader.open(b"\x00\x00\x00\x03\x85\x04")


def test_a_bad_schema_in_the_registry_rejects_its_alerts(server, client):
    server.schemas[1] = '{"type": "record"'
    with pytest.raises(RejectedAlertError) as caught:
        FrameReader(schemas=client).open(b"\x00\x00\x00\x00\x01\x04")
    assert caught.value.reason is Reason.SCHEMA


# --- in memory


def test_a_mock_registry_starts_empty_and_is_its_owners_alone():
    with HttpRegistry("mock://demo") as one, HttpRegistry("mock://demo") as two:
        first, second = one.register("s-value", SCHEMA), one.register("t-value", OTHER)
        assert first != second
        assert one.register("t-value", SCHEMA) == first
        assert (one.get(first), one.get(second)) == (SCHEMA, OTHER)
        with pytest.raises(RejectedAlertError):
            two.get(first)


# --- a folder


def test_a_folder_gives_its_files(tmp_path):
    (tmp_path / "703.avsc").write_text(SCHEMA)
    assert FolderRegistry(tmp_path).get(703) == SCHEMA


def test_a_folder_gives_no_other_ids(tmp_path):
    (tmp_path / "big.avsc").write_text(SCHEMA)
    with pytest.raises(RejectedAlertError) as caught:
        FolderRegistry(tmp_path).get(703)
    assert caught.value.reason is Reason.SCHEMA


@pytest.mark.parametrize(("content", "reason"), [(b"\xff\xfe", Reason.SCHEMA), (bytes(2 << 20), Reason.TOO_LARGE)])
def test_a_bad_file_rejects_its_alerts(tmp_path, content, reason):
    (tmp_path / "1.avsc").write_bytes(content)
    with pytest.raises(RejectedAlertError) as caught:
        FolderRegistry(tmp_path).get(1)
    assert caught.value.reason is reason


def test_a_file_that_cannot_be_read_is_tried_again_later(tmp_path):
    (tmp_path / "1.avsc").mkdir()
    with pytest.raises(RetriableError):
        FolderRegistry(tmp_path).get(1)


def test_every_process_gives_a_schema_the_same_id_and_writes_nothing(tmp_path):
    one, two = FolderRegistry(tmp_path), FolderRegistry(tmp_path)
    schema_id = one.register("s-value", SCHEMA)
    assert schema_id == two.register("t-value", SCHEMA) == one.register("s-value", SCHEMA)
    assert 0 <= schema_id < 2**31
    assert one.register("s-value", OTHER) != schema_id
    assert one.get(schema_id) == SCHEMA
    assert list(tmp_path.iterdir()) == []


def test_a_new_id_is_none_of_the_folders(tmp_path):
    taken = FolderRegistry(tmp_path).register("s-value", SCHEMA)
    (tmp_path / f"{taken}.avsc").write_text(OTHER)
    registry = FolderRegistry(tmp_path)
    assert registry.register("s-value", SCHEMA) == taken + 1
    assert registry.get(taken) == OTHER


def test_a_folder_that_is_not_there_is_a_matter_of_settings(tmp_path):
    with pytest.raises(ConfigError) as caught:
        FolderRegistry(tmp_path / "nothing")
    assert caught.value.remedy


# --- by their setting


def test_a_setting_names_a_folder_or_a_registry(tmp_path):
    assert isinstance(open_registry(str(tmp_path)), FolderRegistry)
    assert isinstance(open_registry(f"file://{tmp_path}"), FolderRegistry)
    for url in ("http://localhost:8081", "https://localhost:8081/path", "mock://x"):
        registry = open_registry(url)
        assert isinstance(registry, HttpRegistry)
        registry.close()


@pytest.mark.parametrize("url", ["ftp://somewhere", "http://", "https://user:secret@", "http://user:secret@[::"])
def test_a_bad_setting_is_refused_without_telling_its_password(url):
    with pytest.raises(ConfigError) as caught:
        open_registry(url)
    assert "secret" not in str(caught.value)
