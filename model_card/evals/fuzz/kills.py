"""Runs that are killed at a random step while they write: converting, overwriting, merging, saving, pushing, training.

What is right: what stood there before is there, whole, or what the run was to write is, whole; of a folder that a save
was writing into, loading says that it is not complete; nothing else is left; and the next run comes to the same end.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from huggingface_hub import constants, hf_api
from small4_conversion import manifest
from small4_conversion.adapters import merge_adapter
from small4_conversion.checkpoint import Reader
from small4_conversion.convert import Options, convert
from small4_conversion.source import open_checkpoint

from modeling_small4 import Small4ForCausalLM, Small4Processor

from .cases import Bench, Case, Kind, unreadable
from .processes import fork
from .small_hub import NO_PROXY, Hub

_WATCHED = ("open", "os", "shutil", "fcntl", "ctypes", "tempfile")
Act = Callable[[], object]


def killed_at(step: int, act: Act) -> bool:
    """Run `act` in a process that is killed at its step-th operation on files; False if it was over before."""
    child = fork()
    if child == 0:
        left = [step]

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event.split(".")[0] in _WATCHED:
                left[0] -= 1
                if left[0] == -1:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            act()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_after(seconds: float, act: Act) -> bool:
    """Run `act` in a process that is killed after a time; False if it was over before."""
    child = fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def measured(act: Act) -> tuple[int, float]:
    """Run `act` to its end in a process of its own: how many operations on files it makes, and how long it takes.

    Raises:
        RuntimeError: It failed.
    """
    read, write = os.pipe()
    began = time.monotonic()
    child = fork()
    if child == 0:
        steps, status = [0], 1

        def count(event: str, arguments: tuple[object, ...]) -> None:
            steps[0] += event.split(".")[0] in _WATCHED

        try:
            sys.addaudithook(count)
            act()
            status = 0
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}"[:1000].encode())
        finally:
            if status == 0:
                os.write(write, str(steps[0]).encode())
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError(f"the run failed: {said}")
    return int(said), time.monotonic() - began


def state(folder: Path) -> dict[str, str]:
    """Names and contents of all files below a folder; nothing if there is no folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
    return {str(file.relative_to(folder)): hashlib.sha1(file.read_bytes()).hexdigest() for file in files}


@dataclass(frozen=True)
class Run:
    """What is killed. All functions get the sound folders and the one in which the run works.

    Attributes:
        act: the run; a second one goes on, or begins again, where the first was killed.
        fill: makes what stands there before.
        left: what is wrong with what a killed run left, given the states before and after a whole run; None if nothing.
        same: whether two whole runs come to the same end, given the states; default: the same files.
    """

    act: Callable[[Path, Path], object]
    fill: Callable[[Path, Path], object]
    left: Callable[[Path, Path, dict[str, str], dict[str, str]], str | None]
    same: Callable[[dict[str, str], dict[str, str]], bool] = lambda one, other: one == other


@dataclass(frozen=True)
class _Whole:
    """A run that was not killed: operations on files, seconds, and the states before and after it."""

    steps: int
    seconds: float
    before: dict[str, str]
    after: dict[str, str]


_wholes: dict[tuple[Path, str], _Whole] = {}


def _whole(name: str, run: Run, sound: Path) -> _Whole:
    if (sound, name) not in _wholes:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch) / "work"
            place.mkdir()
            run.fill(sound, place)
            before = state(place)
            steps, seconds = measured(lambda: run.act(sound, place))
            _wholes[sound, name] = _Whole(steps, seconds, before, state(place))
    return _wholes[sound, name]


def kind(name: str) -> Kind:
    """The kind of cases that kill the run of this name."""

    def make(bench: Bench, draw: random.Random) -> Case:
        run, place = RUNS[name], bench.work
        whole = _whole(name, run, bench.sound)
        step = draw.randrange(whole.steps) if draw.random() < 0.5 else None
        share = draw.random()

        def read() -> str | None:
            run.fill(bench.sound, place)
            act = lambda: run.act(bench.sound, place)  # noqa: E731
            killed_after(share * whole.seconds, act) if step is None else killed_at(step, act)
            if reason := run.left(bench.sound, place, whole.before, whole.after):
                return reason
            try:
                measured(act)
            except RuntimeError as error:
                return f"the next run: {error}"
            found = state(place)
            if run.same(found, whole.after):
                return None
            names = sorted(name for name in found | whole.after if found.get(name) != whole.after.get(name))
            return f"the next run came to another end: {', '.join(names)[:200]}"

        what = f"step {step} of {whole.steps}" if step is not None else f"after {share:.0%} of its time"
        return Case(what, read, lambda reason: None if reason is None else str(reason))

    return make


def _convert(sound: Path, place: Path, overwrite: bool = False) -> None:
    there = (place / "out").exists()
    try:
        convert(sound / "raw", place / "out", Options(shard_size=40_000, overwrite=overwrite))
    except ValueError as error:
        if overwrite or not there or "exists already" not in str(error):
            raise  # otherwise the killed run had come to its end


def _old_checkpoint(sound: Path, place: Path) -> None:
    """A checkpoint in another layout, with a file and a folder of the user's in it."""
    convert(sound / "ours", place / "out", Options(to="mistral"))
    (place / "out" / "notes.txt").write_text("notes")
    (place / "out" / "logs").mkdir()
    (place / "out" / "logs" / "log.txt").write_text("log")


def _one_or_other(sound: Path, place: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """The old folder or the new one, whole; folders of the user's that were in it may wait beside for the next run."""
    everything = state(place)
    found = {n: value for n, value in everything.items() if n.startswith("out/") and not n.startswith("out/.small4-")}
    whole = [{name: value for name, value in each.items() if "/logs/" not in name} for each in (before, after)]
    logs = {value for name, value in before.items() if "/logs/" in name}
    if {name: value for name, value in found.items() if "/logs/" not in name} in whole and logs <= {
        *everything.values()
    }:
        return None
    return f"neither the old folder nor the new one: {', '.join(found)[:200]}"


def _merge(sound: Path, place: Path) -> None:
    there = (place / "out").exists()
    try:
        merge_adapter(sound / "adapter", place / "out", to="small4")
    except ValueError as error:
        if not there or "exists already" not in str(error):
            raise


def _manifest(sound: Path, place: Path) -> None:
    with Reader() as reader:
        manifest.write(manifest.build(open_checkpoint(place / "out"), reader), place / "out" / manifest.MANIFEST)


def _with_another_manifest(sound: Path, place: Path) -> None:
    shutil.copytree(sound / "one", place / "out")
    with Reader() as reader:
        manifest.write(manifest.build(open_checkpoint(sound / "other"), reader), place / "out" / manifest.MANIFEST)


def _save(sound: Path, place: Path, name: str) -> None:
    Small4ForCausalLM.from_pretrained(sound / name).save_pretrained(place / "out", max_shard_size="40KB")
    Small4Processor.from_pretrained(sound / name).save_pretrained(place / "out")


def _loads(sound: Path, place: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """What can be loaded is the old model or the new one; anything else is refused in one line."""
    try:
        found = _tensors(place / "out")
    except (ValueError, OSError) as error:
        return unreadable(str(error).replace(str(place), ""))
    same = [name for name in ("one", "other") if _equal(found, _tensors(sound / name))]
    return None if same else "a mixture of the old model and the new one was loaded"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Small4ForCausalLM.from_pretrained(folder).state_dict())


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@cache
def _hub(place: Path) -> Hub:
    return Hub()


def _push(sound: Path, place: Path) -> None:
    hub = _hub(place)
    os.environ.update(NO_PROXY)  # in the process of the run alone, as all of these
    constants.HF_HUB_OFFLINE = False  # this Hub is here
    hf_api.api.endpoint = constants.ENDPOINT = hub.endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for part in (Small4ForCausalLM, Small4Processor):
        part.from_pretrained(sound / "other").push_to_hub("lab/tiny", token="hf_x")


def _pushed_before(sound: Path, place: Path) -> None:
    hub = _hub(place)
    hub.commits.clear()
    hub.heads.clear()
    hub.commit("lab/tiny", "main", {file.name: file.read_bytes() for file in (sound / "one").iterdir()})


def _on_the_hub(sound: Path, place: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """The weights of one model, whole, and with them the configuration."""
    found = _hub(place).at("lab/tiny", "main")
    assert found is not None
    weights = found[1]["model.safetensors"]
    same = [name for name in ("one", "other") if (sound / name / "model.safetensors").read_bytes() == weights]
    return None if same else "weights of neither model"


def _train(sound: Path, place: Path) -> None:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    rows = [{"input_ids": [1, 100 + index, 101, 2], "labels": [1, 100 + index, 101, 2]} for index in range(8)]
    arguments = TrainingArguments(
        output_dir=str(place / "out"), max_steps=4, save_steps=1, save_total_limit=2, per_device_train_batch_size=2,
        report_to=[], use_cpu=True, learning_rate=1e-3, disable_tqdm=True, seed=0,
    )  # fmt: skip
    whole = (place / "out").glob("checkpoint-*/trainer_state.json")  # which is written last
    last = max((file.parent for file in whole), key=lambda folder: int(folder.name.split("-")[1]), default=None)
    trainer = Trainer(Small4ForCausalLM.from_pretrained(sound / "one"), arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.save_model(str(place / "out"))


def _nothing_lost(sound: Path, place: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """The next run tells."""
    return None


def _weights_alike(one: dict[str, str], other: dict[str, str]) -> bool:
    """The same trained weights; other files hold times and paths."""
    return one["out/model.safetensors"] == other["out/model.safetensors"]


def _saved_alike(one: dict[str, str], other: dict[str, str]) -> bool:
    """The same files, but for the one that safetensors writes before it renames it: killed, it stays for good, as
    nobody but its writer can know whose it is.
    """
    ours, theirs = ({n: each[n] for n in each if not re.fullmatch(r"out/\.tmp\w{6}", n)} for each in (one, other))
    return ours == theirs


def _nothing(sound: Path, place: Path) -> None:
    pass


RUNS = {
    "convert": Run(_convert, _nothing, _one_or_other),
    "convert --overwrite": Run(partial(_convert, overwrite=True), _old_checkpoint, _one_or_other),
    "merge_adapter": Run(_merge, _nothing, _one_or_other),
    "manifest": Run(_manifest, _with_another_manifest, _one_or_other),
    "save_pretrained": Run(partial(_save, name="one"), _nothing, _loads, _saved_alike),
    "save_pretrained over another": Run(partial(_save, name="other"), partial(_save, name="one"), _loads, _saved_alike),
    "push_to_hub": Run(_push, _pushed_before, _on_the_hub),
    "Trainer": Run(_train, _nothing, _nothing_lost, _weights_alike),
}
