"""Releases: published whole or not at all, verified before use, and which one is served."""

import contextlib
import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.model.release import CARD, Preprocessing, ReleaseCard, problems, sha256
from stream_vae.model.store import ReleaseStore, write_release

from releases import make_release

FILES = ("encoder.onnx", "reference.npz", "scorer.onnx", "report/report.html")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ReleaseStore:
    if request.param == "folder":
        return ReleaseStore(str(tmp_path / "store"))
    return ReleaseStore(f"memory://{tmp_path.name}/store")


@pytest.fixture
def make(store: ReleaseStore, tmp_path: Path) -> Callable[..., ReleaseCard]:
    made = 0

    def make(**options: Any) -> ReleaseCard:
        nonlocal made
        made += 1
        folder = tmp_path / f"new-{made}"
        (folder / "report").mkdir(parents=True)
        (folder / "report" / "report.html").write_text(f"report {made}")
        return make_release(store, folder, **({"seed": made, "promote": False} | options))

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release in a folder that a test may spoil."""
    store = ReleaseStore(str(tmp_path / "spoilt"))
    source = tmp_path / "source"
    (source / "report").mkdir(parents=True)
    (source / "report" / "report.html").write_text("report")
    card = make_release(store, source)
    return tmp_path / "spoilt" / "releases" / card.id


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value)


# publishing and loading


def test_a_published_release_loads_as_it_was(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    card = make(cutouts=("science", "difference"), size=15)
    release = store.load(card.id)
    assert release.card == card
    assert release.card.preprocessing.cutouts == ("science", "difference")
    assert set(card.files) == set(FILES)
    assert problems(release.folder) == []
    for name in FILES:
        path = release.path(name)
        assert path is not None
        assert sha256(path) == card.files[name]
    assert release.path("cvae.keras") is None


def test_another_store_object_sees_it(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    other = ReleaseStore(store.url)
    assert other.ids() == []
    card = make()
    assert other.ids() == [card.id]
    assert other.load(card.id).card == card


def test_loading_twice_gives_the_same(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    card = make()
    first = store.load(card.id)
    assert store.load(card.id) == first
    assert problems(first.folder) == []


def test_the_id_is_name_date_and_digest_of_the_card(make: Callable[..., ReleaseCard]) -> None:
    card = make()
    assert card.id == f"test-{card.created_at:%Y%m%d}-{card.digest()[:12]}"


@pytest.mark.parametrize(
    "change",
    [
        {"latent_space": "other"},
        {"preprocessing": Preprocessing(fill=0.1)},
        {"metrics": {"auc": 0.9}},
        {"files": {"encoder.onnx": "0" * 64}},
        {"recipe": {"name": "other"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_the_card_changes_the_id(make: Callable[..., ReleaseCard], change: dict[str, Any]) -> None:
    card = make()
    changed = card.model_copy(update=change).named()
    assert changed.id != card.id


def test_the_digest_survives_the_cards_way_through_json(make: Callable[..., ReleaseCard]) -> None:
    card = make()
    assert ReleaseCard.model_validate_json(card.model_dump_json()).digest() == card.digest()


def test_codes_of_two_encoders_are_in_two_spaces_and_of_one_in_one(make: Callable[..., ReleaseCard]) -> None:
    assert make(seed=1).latent_space == make(seed=1, scorer=False).latent_space
    assert make(seed=1).latent_space != make(seed=2).latent_space


# damage


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert problems(folder) == [f"{name} is not the file that was released: its digest differs"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert problems(folder) == [f"{name} is missing"]


def test_a_file_that_was_added_is_not_part_of_the_release(folder: Path) -> None:
    (folder / "cvae.keras").write_text("surprise")
    assert problems(folder) == []
    release = ReleaseStore(str(folder.parent.parent)).load()
    assert release.path("cvae.keras") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latent_size", 22),
        ("latent_space", "other"),
        ("name", "other"),
        ("stream_vae_version", "9"),
        ("metrics", {"x": 1}),
    ],
)
def test_a_card_that_was_changed_no_longer_has_its_id(folder: Path, key: str, value: object) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {key: value}))
    (found,) = problems(folder)
    assert found.startswith("the id should be ")


def test_a_changed_file_with_a_changed_card_is_found_by_the_id(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(b"evil")
    card = json.loads((folder / CARD).read_text())
    card["files"]["encoder.onnx"] = sha256(folder / "encoder.onnx")
    (folder / CARD).write_text(json.dumps(card))
    assert len(problems(folder)) == 1
    assert "is damaged: the id should be" in refused(ReleaseStore(str(folder.parent.parent)).load)


@pytest.mark.parametrize("required", ["encoder.onnx", "reference.npz"])
def test_a_card_without_a_required_file_is_named(folder: Path, required: str) -> None:
    card = json.loads((folder / CARD).read_text())
    del card["files"][required]
    (folder / CARD).write_text(json.dumps(card))
    assert f"{required} is missing from the card" in problems(folder)


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../b", ".hidden", "a//b", "", "a\\b", "encoder.onnx\n"]
)
def test_a_card_cannot_name_a_file_outside_its_folder(folder: Path, path: str) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"files": {path: "0" * 64}}))
    (found,) = problems(folder)
    assert "is no path inside a release" in found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format": 2}'])
def test_a_card_that_is_no_card_is_a_problem_and_no_crash(folder: Path, content: bytes) -> None:
    (folder / CARD).write_bytes(content)
    assert problems(folder)
    store = ReleaseStore(str(folder.parent.parent))
    assert store.ids() == []
    assert "is damaged" in refused(store.load)


def test_a_damaged_release_is_neither_loaded_nor_promoted(folder: Path) -> None:
    store = ReleaseStore(str(folder.parent.parent))
    shutil.copytree(folder, folder.parent / "aside")
    (folder / "encoder.onnx").write_bytes(b"")
    for action in (store.load, lambda: store.load(folder.name), lambda: store.promote(folder.name)):
        message = refused(action)
        assert "encoder.onnx" in message
        assert "releases verify" in message


# half a release


def test_a_half_written_release_is_never_listed(
    store: ReleaseStore, make: Callable[..., ReleaseCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make()
    write = store._fs.put_file

    def fails(local: str, remote: str, **options: Any) -> None:
        if remote.endswith("reference.npz"):
            raise OSError("no space left")
        write(local, remote, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store._fs, "put_file", fails)
        with pytest.raises(RetriableError, match="no space left"):
            make()
    assert ReleaseStore(store.url).ids() == [whole.id]


def test_a_folder_without_its_card_yet_is_not_listed_and_not_loaded(folder: Path) -> None:
    (folder / CARD).unlink()
    store = ReleaseStore(str(folder.parent.parent))
    assert store.ids() == []
    assert store.folders() == [folder.name]
    assert f"{CARD} cannot be read" in refused(lambda: store.load(folder.name))


@pytest.mark.parametrize("missing", ["encoder.onnx", "reference.npz"])
def test_a_folder_without_a_required_file_is_no_release(tmp_path: Path, folder: Path, missing: str) -> None:
    source = tmp_path / "source"
    (source / missing).unlink()
    with pytest.raises(ConfigError, match=f"has no {missing}"):
        publish(ReleaseStore(str(tmp_path / "other")), source)


FULL_DISK = """
import resource, sys
from pathlib import Path
from stream_vae.errors import RetriableError
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore, write_release

resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # a file cannot grow beyond: as on a disk that is full
about = {"recipe": {}, "data": {}, "metrics": {}, "preprocessing": Preprocessing()}
try:
    write_release(ReleaseStore(sys.argv[1]), Path(sys.argv[2]), name="test", latent_size=21, **about)
except RetriableError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_no_part_of_a_release(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    make_release(ReleaseStore(url), tmp_path / "old")
    make_release(ReleaseStore(str(tmp_path / "elsewhere")), tmp_path / "new", seed=1)
    run = [sys.executable, "-c", FULL_DISK, url, str(tmp_path / "new")]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "cannot be written" in result.stdout
    assert "Nothing of it was kept" in result.stdout
    store = ReleaseStore(url)
    assert len(list((tmp_path / "store" / "releases").iterdir())) == 1
    assert [event["event"] for event in store.history()] == ["created", "promoted"]
    assert problems(store.fetch(store.ids()[0])) == []


@pytest.mark.parametrize("files", range(len(FILES) + 1))
def test_whoever_is_killed_while_publishing_leaves_no_release_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    source = tmp_path / "source"
    make_release(ReleaseStore(str(tmp_path / "elsewhere")), source, seed=1)
    store = ReleaseStore(str(tmp_path / "store"))
    put, written = store._fs.put_file, []

    def dies(*arguments: object) -> None:
        if len(written) == files:
            raise KeyboardInterrupt
        written.append(arguments)
        put(*arguments)

    monkeypatch.setattr(store._fs, "put_file", dies)
    with contextlib.suppress(KeyboardInterrupt):
        publish(store, source)
    monkeypatch.undo()
    assert store.ids() == store.folders()
    assert all(problems(store.fetch(name)) == [] for name in store.folders())
    publish(store, source)
    assert len(store.ids()) >= 1


def publish(store: ReleaseStore, folder: Path, **changes: Any) -> ReleaseCard:
    values: dict[str, Any] = {
        "name": "test",
        "latent_size": 21,
        "recipe": {},
        "data": {},
        "metrics": {},
        "preprocessing": Preprocessing(),
    }
    return write_release(store, folder, **(values | changes))


@pytest.mark.parametrize("name", ["My run", "../up", "", "a/b", "ünicode", "x" * 65])
def test_a_name_that_makes_no_folder_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    store = ReleaseStore(str(tmp_path / "other"))
    assert "name: " in refused(lambda: publish(store, tmp_path / "source", name=name))
    assert store.folders() == []


def test_a_file_that_may_not_be_in_a_release_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "source" / ".DS_Store").write_text("x")
    store = ReleaseStore(str(tmp_path / "other"))
    assert ".DS_Store" in refused(lambda: publish(store, tmp_path / "source"))


@pytest.mark.parametrize("cutouts", [(), ("difference", "difference"), ("diff",)])
def test_preprocessing_names_each_cutout_once(cutouts: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(cutouts=cutouts)  # type: ignore[arg-type]


# which one is served


def test_a_new_store_is_empty_and_says_what_to_do(store: ReleaseStore) -> None:
    assert store.ids() == []
    assert store.current() is None
    assert store.history() == []
    assert "stream-vae train --promote" in refused(store.load)


def test_promoting_switches_the_current_release_and_keeps_the_history(
    store: ReleaseStore, make: Callable[..., ReleaseCard]
) -> None:
    first, second = make(), make()
    assert store.current() is None
    store.promote(first.id)
    assert store.current() == first.id
    assert store.promote(second.id, reason="gates passed") == second.id
    assert ReleaseStore(store.url).load().id == second.id
    events = [(entry["event"], entry["release"]) for entry in store.history()]
    assert events == [
        ("created", first.id),
        ("created", second.id),
        ("promoted", first.id),
        ("promoted", second.id),
    ]
    assert store.history()[-1]["reason"] == "gates passed"
    assert store.history()[-1]["previous"] == first.id


def test_releases_are_listed_oldest_first(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    made = [make().id for _ in range(4)]
    assert store.ids() == made


def test_rolling_back_walks_through_what_was_served(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    first, second, third = (make(promote=True).id for _ in range(3))
    assert store.rollback(reason="worse") == second
    assert store.current() == second
    assert store.rollback() == first
    assert "nothing to roll back to" in refused(store.rollback)
    assert store.current() == first
    store.promote(third)
    assert store.rollback() == first
    assert store.history()[-1]["previous"] == third


def test_promoting_what_is_served_leaves_the_way_back(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    first, second = make(promote=True).id, make(promote=True).id
    store.promote(second)
    assert store.rollback() == first


def test_one_release_has_nothing_to_roll_back_to(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    make(promote=True)
    assert "nothing to roll back to" in refused(store.rollback)


def test_an_id_may_be_shortened_at_either_end_while_it_is_clear(
    store: ReleaseStore, make: Callable[..., ReleaseCard]
) -> None:
    first = make()
    assert store.resolve(first.id[:-3]) == first.id
    assert store.resolve(first.id[-6:]) == first.id
    assert store.resolve("test") == first.id
    second = make()
    assert store.resolve(second.id) == second.id
    message = refused(lambda: store.resolve("test"))
    assert "matches several releases" in message
    assert first.id in message
    assert second.id in message


@pytest.mark.parametrize("name", ["nosuch", "../../etc", "test-20260101-000000000000"])
def test_a_release_that_is_not_there_is_refused(
    store: ReleaseStore, make: Callable[..., ReleaseCard], name: str
) -> None:
    make()
    assert "releases list" in refused(lambda: store.load(name))
    assert "is not in the store" in refused(lambda: store.fetch(name))


def test_a_pointer_to_a_release_that_is_gone_is_refused(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    card = make(promote=True)
    store._fs.rm(str(store._root / "releases" / card.id), recursive=True)
    assert f"{card.id!r} is not in the store" in refused(store.load)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"3", b"\xff\xfe"])
def test_a_damaged_pointer_is_told_and_mended_by_promoting(
    store: ReleaseStore, make: Callable[..., ReleaseCard], content: bytes
) -> None:
    card = make(promote=True)
    store._fs.pipe_file(str(store._root / "current.json"), content)
    message = refused(store.load)
    assert "current.json" in message
    assert "releases promote" in message
    store.promote(card.id)
    assert store.load().id == card.id


def test_a_pointer_cannot_lead_out_of_the_store(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    make(promote=True)
    store._fs.pipe_file(str(store._root / "current.json"), b'{"release": "../../../etc"}')
    assert "is not in the store" in refused(store.load)


def test_a_damaged_history_is_told_with_the_remedy(store: ReleaseStore, make: Callable[..., ReleaseCard]) -> None:
    make(promote=True)
    store._fs.pipe_file(str(store._root / "history" / "0.json"), b"{")
    assert "Remove the damaged file" in refused(store.history)


def test_a_store_that_does_not_answer_is_for_later(store: ReleaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    for verb in ("ls", "cat_file", "pipe_file", "makedirs"):
        monkeypatch.setattr(store._fs, verb, fails)
    for action in (store.folders, store.current, store.history, lambda: store._serve("promoted", "x", None, "")):
        with pytest.raises(RetriableError, match="not yours"):
            action()


@pytest.mark.parametrize("url", ["nosuch://bucket", "s4://"])
def test_a_store_of_an_unknown_kind_is_refused_with_the_remedy(url: str) -> None:
    assert "fsspec plug-in" in refused(lambda: ReleaseStore(url))


def test_the_copy_of_a_remote_release_lasts_as_long_as_the_release(tmp_path: Path) -> None:
    make_release(ReleaseStore(f"memory://{tmp_path.name}/other"), tmp_path / "new")
    release = ReleaseStore(f"memory://{tmp_path.name}/other").load()
    folder = release.folder
    gc.collect()
    assert problems(folder) == []
    del release
    gc.collect()
    assert not folder.exists()


def test_readers_of_the_pointer_see_the_old_or_the_new_never_a_part(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    make_release(store, tmp_path / "new")
    before = (tmp_path / "store" / "current.json").stat()
    store.promote(store.ids()[0])
    after = (tmp_path / "store" / "current.json").stat()
    assert before.st_ino != after.st_ino  # another file was put in its place
    assert [path.name for path in (tmp_path / "store").iterdir() if path.name.startswith(".")] == []


def test_a_store_that_is_a_file_is_refused_with_what_it_should_be(tmp_path: Path) -> None:
    file = tmp_path / "release.zip"
    file.write_bytes(b"")
    assert "is a file, not a folder. Name the folder" in refused(lambda: ReleaseStore(str(file)))
