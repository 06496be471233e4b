"""A destination appears whole or not at all: killed runs, two runs at once, full disks, overwriting, and bounded
memory.
"""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import raw_checkpoint as rc
from forked import Python, python
from small4_conversion import checkpoint, shards
from small4_conversion import convert as convert_module
from small4_conversion.__main__ import main
from small4_conversion.convert import Options, convert
from small4_conversion.staging import private_folder
from test_conversion_damage import refused


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some megabytes, so that a run takes long enough to be interrupted."""
    p = rc.fp8_params(rc.params(dim=256, n_layers=3, moe={"num_experts": 8, "expert_hidden_dim": 256}))
    return rc.write_raw(tmp_path_factory.mktemp("source") / "raw", p, rc.to_fp8(rc.weights(p)), shards=3)


def digest(folder: Path) -> str:
    """Names and contents of all files of a folder."""
    out = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        out.update(file.name.encode() + b"\0" + file.read_bytes())
    return out.hexdigest()


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from small4_conversion.checkpoint import CheckpointError
from small4_conversion.convert import Options, convert
import small4_conversion.tokenizer
torch.set_num_threads(1)
source, root, seed, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
options = Options(shard_size=500_000, overwrite=sys.argv[5] == "overwrite")

def child(target):
    pid = os.fork()
    if pid == 0:
        try:
            convert(source, target, options)
        except CheckpointError:
            os._exit(3)
        os._exit(0)
    return pid

def whole(target):
    assert os.waitpid(child(target), 0)[1] == 0

began = time.perf_counter(); whole(root / "reference"); took = time.perf_counter() - began
random.seed(seed)
landed = 0
for i in range(times):
    target, killed = root / f"run{i}", False
    while not killed:  # a run that was over before it was killed is no kill: again, sooner
        if options.overwrite:
            whole(target)
        elif target.exists():
            shutil.rmtree(target)
            took *= 0.8
        pid = child(target)
        time.sleep(random.uniform(0, took))
        os.kill(pid, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    landed += killed
    if target.exists():
        assert (target / "config.json").exists() and (target / "model.safetensors.index.json").exists()
    elif not options.overwrite:
        assert not any(e.name.startswith("model") for e in root.iterdir())
    if not options.overwrite and target.exists():  # killed when its folder was in place: the next run only tidies up
        assert os.waitstatus_to_exitcode(os.waitpid(child(target), 0)[1]) == 3
    else:
        whole(target)
print(landed)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "times"), [("fresh", 6), ("overwrite", 3)])
def test_killed_runs_start_again_to_the_identical_folder(raw: Path, tmp_path: Path, mode: str, times: int) -> None:
    done = python("-c", KILLER, str(raw), str(tmp_path), "0", str(times), mode)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == times
    assert entries(tmp_path) == sorted(["reference", *(f"run{i}" for i in range(times))])
    assert {digest(folder) for folder in tmp_path.iterdir()} == {digest(tmp_path / "reference")}


@pytest.mark.slow
def test_two_runs_on_one_destination_do_not_mix(raw: Path, tmp_path: Path) -> None:
    command = ("-m", "small4_conversion", str(raw), str(tmp_path / "dst"), "--json")
    shown = [run.done() for run in [Python(*command) for _ in range(3)]]
    assert sorted(run.returncode for run in shown) == [0, 1, 1]
    for run in shown:
        refusals = ("another run is writing", "exists already", "meanwhile")
        assert run.returncode == 0 or any(words in run.stderr for words in refusals)
    convert(raw, tmp_path / "alone")
    assert digest(tmp_path / "dst") == digest(tmp_path / "alone")
    assert entries(tmp_path) == ["alone", "dst"]


def test_a_destination_being_written_is_refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with private_folder(tmp_path / "dst"):
        refused([str(raw), str(tmp_path / "dst")], capsys, "dst", "another run is writing")
    assert main([str(raw), str(tmp_path / "dst")]) == 0
    assert entries(tmp_path) == ["dst"]
    assert (tmp_path / "dst" / "model.safetensors").stat().st_size > 1e6


def test_full_disk_is_reported_and_leaves_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = os.write, [0]

    def full(descriptor: int, data: memoryview) -> int:
        written[0] += len(data)
        if written[0] > 2_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(checkpoint.os, "write", full)
    refused([str(raw), str(tmp_path / "made" / "dst")], capsys, "No space left", "model.safetensors")
    assert entries(tmp_path) == []


def test_an_error_of_the_disk_at_the_end_of_a_file_is_reported(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shards.os, "fsync", broken)
    refused([str(raw), str(tmp_path / "dst")], capsys, "Input/output error", "model.safetensors")
    assert entries(tmp_path) == []


def test_too_little_space_is_refused_before_writing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        convert_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    refused([str(raw), str(tmp_path / "dst")], capsys, "needs", "free")
    assert entries(tmp_path) == []


def test_a_write_that_the_system_stops(raw: Path, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    limited += "from small4_conversion.__main__ import main\nraise SystemExit(main())"
    done = python("-c", limited, str(raw), str(tmp_path / "dst"))
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert sum(line.startswith("small4 ") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert entries(tmp_path) == []


def test_existing_destinations(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "dst"
    target.mkdir()
    assert main([str(raw), str(target)]) == 0  # an empty folder is as good as none
    first = digest(target)
    capsys.readouterr()
    refused([str(raw), str(target)], capsys, "exists already", "--overwrite")
    assert digest(target) == first
    assert main([str(raw), str(target), "--to", "mistral", "--overwrite"]) == 0
    assert (target / "params.json").exists()
    assert not (target / "config.json").exists()
    capsys.readouterr()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    refused([str(raw), str(tmp_path / "photos"), "--overwrite"], capsys, "photos", "no checkpoint folder")
    (tmp_path / "file").write_text("x")
    refused([str(raw), str(tmp_path / "file"), "--overwrite"], capsys, "is no folder")
    (tmp_path / "link").symlink_to(target)
    refused([str(raw), str(tmp_path / "link"), "--overwrite"], capsys, "is no folder")
    assert entries(tmp_path) == ["dst", "file", "link", "photos"]


def test_the_source_is_never_overwritten(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(raw, tmp_path / "model" / "raw")
    (tmp_path / "model" / "config.json").write_text("{}")
    before = digest(tmp_path / "model" / "raw")
    for target in (tmp_path / "model" / "raw", tmp_path / "model", tmp_path / "model" / "raw" / ".." / "raw"):
        refused([str(tmp_path / "model" / "raw"), str(target), "--overwrite"], capsys, "source")
    assert digest(tmp_path / "model" / "raw") == before


def test_a_failed_overwrite_keeps_the_former_folder(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(raw, tmp_path / "dst", Options(to="mistral"))
    before = digest(tmp_path / "dst")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.os, "write", broken)
    refused([str(raw), str(tmp_path / "dst"), "--overwrite"], capsys, "Input/output error")
    assert digest(tmp_path / "dst") == before
    assert entries(tmp_path) == ["dst"]


def test_what_stays_beside_an_overwritten_checkpoint_is_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "dst"
    assert main([str(raw), str(target), "--to", "mistral"]) == 0
    (target / "scripts").mkdir()
    (target / "scripts" / "run.py").write_text("print()")
    (target / "notes.txt").write_text("notes")
    for layout in (["--with-code"], ["--to", "transformers"], ["--to", "mistral"]):
        capsys.readouterr()
        assert main([str(raw), str(target), "--overwrite", *layout]) == 0
        assert "kept beside the checkpoint, as small4 did not write it: notes.txt, scripts" in capsys.readouterr().out
    convert(raw, tmp_path / "alone", Options(to="mistral"))
    assert set(entries(target)) == {*entries(tmp_path / "alone"), "scripts", "notes.txt"}
    assert (target / "scripts" / "run.py").read_text() == "print()"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    peaks = []
    for name, experts, width in (("small", 4, 64), ("large", 32, 1024)):
        p = rc.fp8_params(
            rc.params(vision=False, dim=512, n_layers=2, moe={"num_experts": experts, "expert_hidden_dim": width})
        )
        rc.write_raw(tmp_path / name, p, rc.to_fp8(rc.weights(p)))
        for options in (["--to", "small4"], ["--dtype", "float32"]):
            words = (str(tmp_path / name), str(tmp_path / "out"), "--json", "--overwrite", *options)
            summary = json.loads(python("-m", "small4_conversion", *words).stdout)
            peaks.append(summary["peak_rss_bytes"])
    assert summary["bytes"] > 400e6
    assert max(peaks) - min(peaks) < 100e6, peaks
