"""What writing a checkpoint folder may touch: links, folders of the user's, what stands beside a checkpoint, kills at
every step.
"""

import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import python
from small4_conversion import staging, systems
from small4_conversion.checkpoint import CheckpointError
from small4_conversion.staging import PREFIX, check_destination, new_folder, private_folder

from model_card.evals.fuzz.kills import killed_at

OLD = {"config.json": '{"model_type": "small4"}', "model.safetensors": "old weights", "tekken.json": "old tokenizer"}
NEW = {
    "config.json": '{"model_type": "small4", "dtype": "bfloat16"}',
    "model-00001-of-00001.safetensors": "new weights",
}


def fill(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def write(place: Path, overwrite: bool = False, files: dict[str, str] = NEW) -> list[str]:
    """As a conversion does; returns what it remarked."""
    notes: list[str] = []
    check_destination(place, place.parent / "source", overwrite)
    with new_folder(place, overwrite, notes.append) as folder:
        fill(folder, files)
    return notes


def texts(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in sorted(folder.iterdir()) if entry.is_file()}


def everything(folder: Path) -> dict[str, tuple[int, int, str]]:
    """All that is below a folder, links not followed: inode, mode, and content or target."""
    out = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        out[str(path.relative_to(folder))] = (found.st_ino, found.st_mode, content)
    return out


NAMES = [".dst.partial", ".dst.old", ".dst.tmp", ".small4-dst", PREFIX + "x", "dst.partial", ".dst"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_foreign_folders_are_never_touched_whatever_their_name(tmp_path: Path, name: str, overwrite: bool) -> None:
    work = tmp_path / "work"
    elsewhere = fill(tmp_path / "elsewhere", OLD | {"thesis.txt": "years"})
    fill(work / name / "deep", OLD)
    (work / name).chmod(0o700)
    (work / f"{name}-link").symlink_to(elsewhere)
    (work / f"{PREFIX}link").symlink_to(elsewhere)
    (work / f"{PREFIX}file").write_text("a file")
    if overwrite:
        fill(work / "dst", OLD)
    before = everything(tmp_path)
    write(work / "dst", overwrite)
    after = everything(tmp_path)
    assert texts(work / "dst") == NEW
    assert stat.S_ISDIR((work / "dst").lstat().st_mode)
    assert {path: after[path] for path in before if not path.startswith("work/dst/") and path != "work/dst"} == {
        path: entry for path, entry in before.items() if not path.startswith("work/dst/") and path != "work/dst"
    }
    assert {path for path in after if not path.startswith("work/dst")} <= before.keys()


def forged(work: Path, kind: str) -> Path:
    """What looks like the folder of a killed run on `dst`, but is none."""
    content = staging._mark_of(work / "dst").decode()
    place = fill(work / f"{PREFIX}forged", {"thesis.txt": "years", staging.MARK: content})
    place.chmod(0o700)
    fill(place / "new", {"thesis.txt": "more years"})
    note = work / f"{PREFIX}forged{staging.NOTE}"
    note.write_text(content)
    if kind == "other destination":
        note.write_bytes(staging._mark_of(work / "other"))
    elif kind == "no note":
        note.unlink()
    elif kind == "note of other content":
        note.write_text("mine")
    elif kind == "note a link":
        note.rename(work / "note")
        note.symlink_to(work / "note")
    elif kind == "note a pipe":
        note.unlink()
        os.mkfifo(note)
    elif kind == "note a folder":
        note.unlink()
        note.mkdir()
    elif kind == "open to all":
        place.chmod(0o755)
    elif kind == "link":
        place.rename(work / "hidden")
        place.symlink_to(work / "hidden")
    elif kind == "no mark":
        (place / staging.MARK).unlink()
    elif kind == "mark of other content":
        (place / staging.MARK).write_text("mine")
    elif kind == "mark a link":
        (place / staging.MARK).rename(work / "mark")
        (place / staging.MARK).symlink_to(work / "mark")
    elif kind == "mark a pipe":
        (place / staging.MARK).unlink()
        os.mkfifo(place / staging.MARK)
    return place


KINDS = [
    "other destination",
    "no note",
    "note of other content",
    "note a link",
    "note a pipe",
    "note a folder",
    "open to all",
]
KINDS += ["link", "no mark", "mark of other content", "mark a link", "mark a pipe"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_runs_folder_is_left_alone(tmp_path: Path, kind: str) -> None:
    forged(tmp_path, kind)
    before = everything(tmp_path)
    write(tmp_path / "dst")
    assert {path: entry for path, entry in everything(tmp_path).items() if not path.startswith("dst")} == before


def test_a_users_files_in_a_dead_runs_folder_stay(tmp_path: Path) -> None:
    place = forged(tmp_path, "")  # marked, locked by nobody
    elsewhere = fill(tmp_path / "elsewhere", OLD)
    (place / "new" / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    (place / "former").symlink_to(elsewhere)
    (place / "linked").symlink_to(elsewhere)
    (place / "new" / "mine").mkdir()
    (place / "new" / "mine" / "photo").write_text("photo")
    write(tmp_path / "dst")
    assert texts(tmp_path / "dst") == NEW
    assert texts(elsewhere) == OLD
    assert (place / "thesis.txt").read_text() == "years"
    assert (place / "new" / "mine" / "photo").read_text() == "photo"


def add_foreign(folder: Path, elsewhere: Path) -> set[str]:
    """All kinds of entries that are no files of a checkpoint; returns their names."""
    fill(
        folder,
        {
            "notes.txt": "notes",
            "train.py": "print()",
            "optimizer.pt": "state",
            "config.json.bak": "{}",
            "cache.py": "mine",
        },
    )
    fill(folder / "runs" / "first", {"config.json": "{}", "model.safetensors": "theirs"})
    (folder / "empty").mkdir(mode=0o711)
    (folder / "link").symlink_to(elsewhere / "model.safetensors")
    (folder / "tree").symlink_to(elsewhere)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket has a hundred letters at most
        listener.bind("socket")
        os.chdir(here)
    return {"notes.txt", "train.py", "optimizer.pt", "config.json.bak", "cache.py", "runs", "empty", "link", "tree"} | {
        "dangling",
        "pipe",
        "socket",
    }


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "exchange", lambda one, other: False)


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(staging.os, "link", link)


SYSTEMS: list[list[Callable[[pytest.MonkeyPatch], None]]] = [[], [no_exchange], [no_links], [no_exchange, no_links]]


@pytest.mark.parametrize("lacking", SYSTEMS)
def test_overwrite_keeps_and_names_what_is_no_file_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[Callable[[pytest.MonkeyPatch], None]]
) -> None:
    elsewhere = fill(tmp_path / "elsewhere", OLD)
    place = fill(tmp_path / "work" / "dst", OLD)
    names = add_foreign(place, elsewhere)
    before = everything(tmp_path)
    for lack in lacking:
        lack(monkeypatch)
    (note,) = write(place, overwrite=True)
    after = everything(tmp_path)
    gone = {f"work/dst/{name}" for name in OLD} | {"work/dst"}
    assert {path: after[path] for path in before.keys() - gone} == {p: before[p] for p in before.keys() - gone}
    assert after.keys() - before.keys() == {f"work/dst/{name}" for name in NEW.keys() - OLD.keys()}
    assert {name: (place / name).read_text() for name in NEW} == NEW
    assert note.startswith(f"{place}: kept")
    assert sum(name in note for name in names) >= 8
    assert "and 4 more" in note


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "web application": ({"config.json": '{"port": 8080}', "data.db": "rows"}, "model_type None"),
    "configuration of a list": ({"config.json": "[]", "data.db": "rows"}, "cannot be read"),
    "damaged configuration": ({"config.json": '{"model_type": "small', "model.safetensors": "x"}, "cannot be read"),
    "another model": ({"config.json": '{"model_type": "llama"}', "model.safetensors": "llama"}, "llama"),
    "model type a number": ({"config.json": '{"model_type": 4}'}, "model_type 4"),
    "model type a list": ({"config.json": '{"model_type": ["small4"]}'}, "model_type"),
    "params of something else": ({"params.json": '{"dim": 3, "n_layers": 2}', "x": "y"}, "kv_lora_rank"),
    "weights alone": ({"model.safetensors": "weights"}, "neither"),
    "photographs": ({"cat.png": "cat"}, "neither"),
    "weights of another set": (OLD | {"model.best.safetensors": "best"}, "model.best.safetensors"),
    "raw weights of another name": (OLD | {"consolidated.00.safetensors": "best"}, "consolidated.00.safetensors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_overwrite_refuses_what_is_no_checkpoint_of_this_model(tmp_path: Path, kind: str) -> None:
    files, reason = REFUSED[kind]
    place = fill(tmp_path / "dst", files)
    before = everything(tmp_path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        write(place, overwrite=True)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)
    assert everything(tmp_path) == before


def test_overwrite_refuses_a_new_file_in_the_place_of_a_users(tmp_path: Path) -> None:
    place = fill(tmp_path / "dst", OLD | {"attention.py": "my script"})
    (place / "generation_config.json").mkdir()
    for name in ("attention.py", "generation_config.json"):
        before = everything(tmp_path)
        with pytest.raises(CheckpointError, match=name):
            write(place, overwrite=True, files=NEW | {name: "ours"})
        assert everything(tmp_path) == before
    assert len(write(place, overwrite=True)) == 1


def test_overwrite_replaces_the_code_that_came_with_the_checkpoint(tmp_path: Path) -> None:
    config = json.dumps({"model_type": "small4", "auto_map": {"AutoModel": "modeling_small4.Small4Model"}})
    code = {"modeling_small4.py": "from .cache import X\nimport torch", "cache.py": "X = 1"}
    place = fill(tmp_path / "dst", OLD | {"config.json": config, "mine.py": "print()", "rope.py": "mine"} | code)
    (note,) = write(place, overwrite=True)
    assert texts(place) == NEW | {"mine.py": "print()", "rope.py": "mine"}
    assert "mine.py, rope.py" in note


def test_links_in_the_former_checkpoint_are_replaced_not_followed(tmp_path: Path) -> None:
    """A snapshot of the Hub's cache consists of links to its store."""
    store = fill(tmp_path / "store", OLD)
    place = tmp_path / "dst"
    place.mkdir()
    for name in OLD:
        (place / name).symlink_to(store / name)
    before = everything(store)
    assert write(place, overwrite=True) == []
    assert everything(store) == before
    assert texts(place) == NEW


def test_a_destination_that_holds_what_the_source_links_to_is_refused(tmp_path: Path) -> None:
    place = fill(tmp_path / "dst", OLD)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.safetensors").symlink_to(place / "model.safetensors")
    with pytest.raises(CheckpointError, match="source"):
        write(place, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", ["folder", "empty", "file", "nowhere"])
def test_a_link_for_a_destination_is_refused(tmp_path: Path, target: str, overwrite: bool) -> None:
    fill(tmp_path / "folder", OLD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "dst").symlink_to(tmp_path / target)
    before = everything(tmp_path)
    for place in (tmp_path / "dst", tmp_path / "folder" / ".." / "dst"):
        with pytest.raises(CheckpointError, match="no folder"):
            write(place, overwrite)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_parents_that_are_no_folders_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "parent").symlink_to(tmp_path / target)
    before = everything(tmp_path)
    if target == "file":
        with pytest.raises(OSError, match=r"parent|file"):
            write(tmp_path / "parent" / "deep" / "dst")
        assert everything(tmp_path) == before


def test_modes(tmp_path: Path) -> None:
    """A new folder has the mode that any new folder gets, one that stood there keeps its own; nobody else looks into an
    unfinished one.
    """
    (tmp_path / "plain").mkdir()
    usual = (tmp_path / "plain").stat().st_mode
    write(tmp_path / "dst")
    assert (tmp_path / "dst").stat().st_mode == usual
    (tmp_path / "dst").chmod(0o750)
    write(tmp_path / "dst", overwrite=True)
    assert stat.S_IMODE((tmp_path / "dst").stat().st_mode) == 0o750
    (tmp_path / "mine").mkdir(mode=0o700)
    with new_folder(tmp_path / "mine", False) as folder:
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700


APPEARS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda place: fill(place, {"thesis.txt": "years"}),
    "a checkpoint": lambda place: fill(place, OLD),
    "a file": lambda place: place.write_text("x"),
    "a link": lambda place: place.symlink_to(fill(place.parent / "elsewhere", OLD)),
    "a link to nothing": lambda place: place.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", APPEARS)
def test_what_comes_into_being_meanwhile_is_not_replaced(tmp_path: Path, kind: str) -> None:
    def run() -> None:
        with new_folder(tmp_path / "dst", False) as folder:
            fill(folder, NEW)
            APPEARS[kind](tmp_path / "dst")
            before.update({path: entry for path, entry in everything(tmp_path).items() if not path.startswith(PREFIX)})

    before: dict[str, tuple[int, int, str]] = {}
    with pytest.raises(CheckpointError, match="meanwhile"):
        run()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("lacking", SYSTEMS[:2])
def test_a_checkpoint_that_another_folder_takes_the_place_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[Callable[[pytest.MonkeyPatch], None]]
) -> None:
    """Before the last look at it, and after."""
    for lack in lacking:
        lack(monkeypatch)
    place = fill(tmp_path / "dst", OLD)
    exchange = staging._change_places

    def swap() -> None:
        place.rename(tmp_path / "away")
        fill(place, {"config.json": "{}", "thesis.txt": "years"})

    def late(one: Path, other: Path) -> None:
        if not (tmp_path / "away").exists():
            swap()
        exchange(one, other)

    with pytest.raises(CheckpointError, match="no checkpoint"), new_folder(place, True) as folder:  # noqa: PT012
        fill(folder, NEW)
        swap()
    assert texts(place) == {"config.json": "{}", "thesis.txt": "years"}
    for name in texts(place):
        (place / name).unlink()
    place.rmdir()
    (tmp_path / "away").rename(place)
    monkeypatch.setattr(staging, "_change_places", late)
    with pytest.raises(CheckpointError, match="meanwhile"):
        write(place, overwrite=True)
    assert texts(place) == {"config.json": "{}", "thesis.txt": "years"}
    assert texts(tmp_path / "away") == OLD
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["away", "dst"]


def test_a_live_run_is_waited_for_and_a_dead_one_cleared(tmp_path: Path) -> None:
    place = tmp_path / "dst"
    with private_folder(place) as private:
        fill(private / "new", OLD)
        with pytest.raises(CheckpointError, match="another run is writing it"):
            write(place)
        assert texts(private / "new") == OLD
        write(tmp_path / "other")
    write(place)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dst", "other"]


def test_mount_points_are_refused(tmp_path: Path) -> None:
    mounted = next((Path(p) for p in ("/dev/shm", "/proc", "/sys") if os.path.ismount(p)), None)
    if mounted is None:
        pytest.skip("no file system is mounted here")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="mount point"):
            check_destination(mounted, tmp_path, overwrite)


@pytest.mark.slow
@pytest.mark.parametrize("lacking", SYSTEMS[:3])
def test_killed_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[Callable[[pytest.MonkeyPatch], None]]
) -> None:
    """The folder is the former one or the new one, whole; what is not ours is in it; and the next run comes to the same
    end.
    """
    for lack in lacking:
        lack(monkeypatch)
    step, states = 0, set()
    while True:
        root = tmp_path / str(step)
        place = fill(root / "dst", OLD | {"notes.txt": "notes"})
        fill(place / "runs", {"log": "log"})
        alive = not killed_at(step, lambda: write(place, overwrite=True))  # noqa: B023
        found = texts(place) if place.exists() else {}
        states.add(json.dumps(found))
        if no_exchange not in lacking or found:
            assert found in (OLD | {"notes.txt": "notes"}, NEW | {"notes.txt": "notes"}) or no_links in lacking
        assert (
            json.loads(json.dumps(found)).get("notes.txt") == "notes" or no_exchange in lacking or no_links in lacking
        )
        write(place, overwrite=True)
        assert texts(place) == NEW | {"notes.txt": "notes"}
        assert texts(place / "runs") == {"log": "log"}
        left = [entry for entry in root.iterdir() if entry != place]
        # Without links a note cannot appear complete: one that is still empty is nobody's, and stays.
        assert not left or (no_links in lacking and [(e.suffix, e.read_bytes()) for e in left] == [(staging.NOTE, b"")])
        if alive:
            break
        step += 1
    assert step > 40
    assert len(states) >= 2


READ_ONLY = """
import os, sys
from pathlib import Path
from small4_conversion.__main__ import main
os.setgid(65534); os.setuid(65534)
source, *places = sys.argv[1:]
print(*(main([source, place, "--overwrite"]) for place in places))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_folders_of_another_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What may not be written stays as it is, and one line says so."""
    import raw_checkpoint as rc

    work = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d"], text=True).strip()))
    try:
        p = rc.params()
        source = rc.write_raw(work / "source", p, rc.weights(p))
        for path in (work, *work.rglob("*")):
            path.chmod(0o755)
        fill(work / "closed" / "dst", OLD)
        fill(work / "open" / "dst", OLD)
        (work / "open").chmod(0o777)
        before = everything(work)
        places = [work / "closed" / "dst", work / "closed" / "new", work / "open" / "dst"]
        done = python("-c", READ_ONLY, str(source), *map(str, places))
        assert done.stdout.split() == ["1"] * 3, done.stderr
        assert sum(line.startswith("small4 ") for line in done.stderr.splitlines()) == 3
        assert "Traceback" not in done.stderr
        assert everything(work) == before
    finally:
        subprocess.run(["rm", "-rf", str(work)], check=True)
