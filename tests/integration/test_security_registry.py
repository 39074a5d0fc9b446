"""A schema registry over TLS: with our own authority trusted, and with a stranger's certificate."""

import threading

import pytest
from stream_vae.avro.registry import open_registry
from stream_vae.errors import RetriableError
from stream_vae.sky.packets import packet_schema

from certificates import NoOpensslError, make_certificates
from schema_registry import Registry
from tls_proxy import tls_before


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    try:
        return make_certificates(tmp_path_factory.mktemp("certificates"))
    except NoOpensslError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def url(certificates):
    registry = Registry({7: packet_schema("candidate")})
    registry.credentials = "user:pass-of-the-registry"
    thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with tls_before(registry.url, certificates) as port:
        yield f"https://127.0.0.1:{port}"
    registry.shutdown()
    registry.server_close()
    thread.join()


def test_a_registry_whose_authority_is_named_is_used_with_its_password(url, certificates):
    registry = open_registry(url, ("user", "pass-of-the-registry"), ca_file=str(certificates.authority))
    assert registry.get(7) == packet_schema("candidate")
    assert registry.register("out-value", '"string"') == 8
    registry.close()


def test_a_certificate_of_an_unknown_authority_gets_neither_schema_nor_password(url):
    registry = open_registry(url, ("user", "pass-of-the-registry"))
    with pytest.raises(RetriableError, match=r"registry\.ca_file") as caught:
        registry.get(7)
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
    assert "pass-of-the-registry" not in str(caught.value)
    registry.close()
